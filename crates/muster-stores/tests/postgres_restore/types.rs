//! Every built-in type, extremes included, is bit for bit what it was after it was read as text, staged and published.

use muster_engine::driver::StoreDriver;

use crate::world::{World, parent, tenant};

/// Type, the function that gives its bytes, and values.
const TYPES: &[(&str, &str, &[&str])] = &[
    ("boolean", "boolsend", &["true", "false"]),
    ("smallint", "int2send", &["-32768", "32767"]),
    ("integer", "int4send", &["-2147483648", "2147483647"]),
    ("bigint", "int8send", &["-9223372036854775808", "9223372036854775807"]),
    (
        "numeric",
        "numeric_send",
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "0.000",
            "-0.10",
            "1e131071",
            "1e-16383",
            "123456789.987654321000",
        ],
    ),
    ("numeric(20,5)", "numeric_send", &["1.5", "'NaN'", "-999999999999999.99999"]),
    (
        "real",
        "float4send",
        &["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "3.4028235e38", "1e-45", "0.1", "16777216"],
    ),
    (
        "double precision",
        "float8send",
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "'-0'",
            "1.7976931348623157e308",
            "5e-324",
            "0.1",
            "2.2250738585072014e-308",
        ],
    ),
    ("money", "cash_send", &["'-92233720368547758.08'", "'92233720368547758.07'", "'0.01'"]),
    (
        "text",
        "textsend",
        &[
            "''",
            "E'a\\tb\\nc\\r\\\\\\b\\f\\v'",
            "'\\N'",
            "'NULL'",
            "'\\.'",
            "'Straße 漢字 🦀'",
            "repeat('x\u{7f}\\', 400000)",
        ],
    ),
    ("varchar(10)", "varcharsend", &["'ab   '", "''"]),
    ("character(5)", "bpcharsend", &["'ab'", "''", "'abcde'"]),
    ("\"char\"", "charsend", &["'a'", "'\\'", "''"]),
    ("name", "namesend", &["'Größe'"]),
    ("bytea", "byteasend", &["''", "'\\x00ff5c0a09'", "decode(repeat('00ff', 100000), 'hex')"]),
    (
        "timestamp",
        "timestamp_send",
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-01 00:00:00 BC'",
            "'294276-12-31 23:59:59.999999'",
            "'2022-04-05 07:38:00.000001'",
        ],
    ),
    (
        "timestamptz",
        "timestamptz_send",
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-02 00:00:00+00 BC'",
            "'294276-12-31 23:59:59.999999+00'",
            "'2021-10-31 02:30:00 Europe/Berlin'",
        ],
    ),
    (
        "date",
        "date_send",
        &["'infinity'", "'-infinity'", "'4713-01-01 BC'", "'5874897-12-31'", "'0044-03-15 BC'"],
    ),
    ("time", "time_send", &["'00:00:00'", "'24:00:00'", "'23:59:59.999999'"]),
    ("timetz", "timetz_send", &["'00:00:00+15:59'", "'24:00:00-15:59:59'", "'12:34:56.789+05:30'"]),
    (
        "interval",
        "interval_send",
        &[
            "'-178000000 years'",
            "'178000000 years'",
            "'1 mon -1 day 00:00:01.000001'",
            "'-1 year +2 days -03:04:05.678'",
            "'0'",
        ],
    ),
    (
        "uuid",
        "uuid_send",
        &["'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"],
    ),
    ("inet", "inet_send", &["'0.0.0.0/0'", "'192.168.0.1/24'", "'::1'", "'fe80::1/64'", "'::ffff:1.2.3.4'"]),
    ("cidr", "cidr_send", &["'10.0.0.0/8'", "'2001:db8::/32'"]),
    ("macaddr", "macaddr_send", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", "macaddr8_send", &["'08:00:2b:01:02:03:04:05'"]),
    ("bit(5)", "bit_send", &["B'00000'", "B'10101'"]),
    ("varbit", "varbit_send", &["B''", "B'1'", "repeat('10', 5000)::varbit"]),
    ("json", "json_send", &["'{\"a\" :  1, \"a\":2, \"é\\u00e9\": [1.00, null]}'", "'null'", "'  1e5 '"]),
    (
        "jsonb",
        "jsonb_send",
        &["'{\"b\": 1.00, \"a\": [true, null, \"\\t\\\\\"]}'", "'null'", "'12345678901234567890.000'"],
    ),
    ("xml", "xml_send", &["'<a b=\"1\">x<!-- y --></a>'", "'text only'", "''"]),
    ("tsvector", "tsvectorsend", &["'''it''''s'':1A fat:2B,3 c:16383'", "''"]),
    ("tsquery", "tsquerysend", &["'fat & !(rat | cat:*AB) <2> ''it''''s'''", "''"]),
    ("int4range", "range_send", &["'empty'", "'(,)'", "'[1,5)'", "'[,5)'"]),
    ("numrange", "range_send", &["'(1.50,2.0]'", "'[NaN,NaN]'", "'(,infinity)'"]),
    ("tstzrange", "range_send", &["'[2020-01-01,infinity)'", "'(-infinity,\"2020-01-01 00:00:00+00\"]'"]),
    ("int8multirange", "multirange_send", &["'{}'", "'{[1,2),[5,6)}'", "'{(,)}'"]),
    ("datemultirange", "multirange_send", &["'{[2020-01-01,infinity)}'"]),
    ("point", "point_send", &["'(0.1,-0)'", "'(Infinity,NaN)'"]),
    ("line", "line_send", &["'{1,-1,0.1}'"]),
    ("lseg", "lseg_send", &["'[(0,0),(1e300,1)]'"]),
    ("box", "box_send", &["'(3,4),(1,2)'"]),
    ("path", "path_send", &["'[(0,0),(1,1)]'", "'((0,0),(1,1),(2,0))'"]),
    ("polygon", "poly_send", &["'((0,0),(1,1),(2,0.1))'"]),
    ("circle", "circle_send", &["'<(1,2),0.1>'"]),
    ("oid", "oidsend", &["0", "4294967295"]),
    ("pg_lsn", "pg_lsn_send", &["'FFFFFFFF/FFFFFFFF'", "'0/0'"]),
    ("xid8", "xid8send", &["'18446744073709551615'"]),
    (
        "text[]",
        "array_send",
        &["'{}'", "'{{a,NULL},{\"NULL\",\"\\\\\\\"\"}}'", "'[0:1]={\"\",\" x \"}'", "ARRAY[E'a\\n\\t,{}']"],
    ),
    ("numeric[]", "array_send", &["'{NaN,1.50,NULL,Infinity}'"]),
    ("timestamptz[]", "array_send", &["'{infinity,\"2020-01-01 00:00:00+00\"}'"]),
    ("jsonb[]", "array_send", &["ARRAY['{\"a\": \"b,}\"}', 'null']::jsonb[]"]),
    ("public.mood", "enum_send", &["'glad'", "'sehr traurig, ''ja'''"]),
    ("public.positive", "int4send", &["7"]),
    ("public.pair", "record_send", &["ROW(1.50, E'a\"b\\\\,()\\n')", "ROW(NULL, '')", "ROW(NULL, NULL)"]),
    ("public.pair[]", "array_send", &["ARRAY[ROW(1, 'x')::public.pair, NULL]"]),
];

const USER_TYPES: &str = "
CREATE TYPE public.mood AS ENUM ('glad', 'sehr traurig, ''ja''');
CREATE DOMAIN public.positive AS integer CHECK (VALUE > 0);
CREATE TYPE public.pair AS (a numeric, b text);
";

#[tokio::test(flavor = "multi_thread")]
async fn every_type_comes_back_bit_for_bit() {
    let columns: Vec<String> = TYPES.iter().enumerate().map(|(n, (of, ..))| format!("c{n} {of}")).collect();
    let ddl = format!(
        "{USER_TYPES} CREATE TABLE v (id int PRIMARY KEY, site text NOT NULL, {})",
        columns.join(", ")
    );
    let world = World::new(&ddl, &[("v", tenant("site"))]).await;
    let mut id = 0;
    for (n, (_, _, values)) in TYPES.iter().enumerate() {
        for value in *values {
            id += 1;
            world.sql(&format!("INSERT INTO v (id, site, c{n}) VALUES ({id}, 'a', {value})")).await;
        }
    }
    assert!(id > 130, "{id}");
    // Each by itself, so that a difference has a name.
    let each = |n: usize, send: &str| {
        format!(
            "SELECT string_agg(id || md5({send}(c{n})) || md5(c{n}::text), ';' ORDER BY id) FROM v WHERE c{n} IS NOT NULL"
        )
    };
    let mut before = Vec::new();
    for (n, (_, send, _)) in TYPES.iter().enumerate() {
        before.push(world.ask(&each(n, send)).await);
    }
    let snapshot = world.snapshot("a").await;
    assert_eq!(snapshot.rows.len(), id);
    world.sql("DELETE FROM v").await;
    let work = snapshot.work("a", "run-types");
    let published = world.restore(&work, &snapshot).await.unwrap();
    assert_eq!(published.rows, id as u64);
    for (n, (of, send, _)) in TYPES.iter().enumerate() {
        assert_eq!(world.ask(&each(n, send)).await, before[n], "{of}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_extensions_are_compared_in_their_own_way() {
    let world = World::new(
        "CREATE EXTENSION citext; CREATE DOMAIN label AS citext;
         CREATE TABLE people (login citext PRIMARY KEY); INSERT INTO people VALUES ('Ann'), ('Bob');
         CREATE TABLE p (id label PRIMARY KEY, site text, who citext REFERENCES people, alias citext UNIQUE DEFERRABLE);
         CREATE TABLE c (id int PRIMARY KEY, p citext REFERENCES p);
         INSERT INTO p VALUES ('One', 'a', 'ANN', 'x'), ('Two', 'b', 'bob', 'y'); INSERT INTO c VALUES (1, 'ONE'), (2, 'two')",
        &[("p", tenant("site")), ("c", parent("p", "p", "id"))],
    )
    .await;
    let snapshot = world.snapshot("a").await;
    assert_eq!(snapshot.rows.len(), 2);
    let mut work = snapshot.work("a", "run-1");
    work.overwrite = true;
    assert_eq!(world.restore(&work, &snapshot).await.unwrap().replaced, 2);
    assert_eq!(world.ask("SELECT string_agg(p, ',' ORDER BY id) FROM c").await, "ONE,two");
    // A key that differs in case only is taken, whether it is checked by the server or by the publish.
    world
        .sql("DELETE FROM c WHERE p = 'one'; DELETE FROM p WHERE site = 'a'; UPDATE p SET alias = 'X'")
        .await;
    world.driver.release(&work.run, std::slice::from_ref(&work.store)).await.unwrap();
    let refused = world.refusal(&snapshot.work("a", "run-2"), &snapshot).await;
    assert!(refused.message.contains("key (alias) = "), "{refused}");
}
