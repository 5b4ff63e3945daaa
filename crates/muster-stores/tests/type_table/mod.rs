//! Every built-in type, and some of an application's own, with values up to their extremes.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part of this")]

/// Type, the function that gives its bytes, and values.
pub const TYPES: &[(&str, &str, &[&str])] = &[
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

/// Types of an application's own.
pub const USER_TYPES: &str = "
CREATE TYPE public.mood AS ENUM ('glad', 'sehr traurig, ''ja''');
CREATE DOMAIN public.positive AS integer CHECK (VALUE > 0);
CREATE TYPE public.pair AS (a numeric, b text);
";

/// Statements that make the types and a table `v` of them in a schema and fill it; a row holds one value.
pub fn fill_sql(schema: &str, site: &str) -> String {
    let own = |text: &str| text.replace("public.", &format!("\"{schema}\"."));
    let columns: Vec<String> =
        TYPES.iter().enumerate().map(|(n, (of, ..))| format!("c{n} {}", own(of))).collect();
    let mut sql = format!(
        "{} CREATE TABLE \"{schema}\".v (id int PRIMARY KEY, site text NOT NULL, {});",
        own(USER_TYPES),
        columns.join(", ")
    );
    let mut id = 0;
    for (n, (_, _, values)) in TYPES.iter().enumerate() {
        for value in *values {
            id += 1;
            let value = own(value);
            sql.push_str(&format!(
                "INSERT INTO \"{schema}\".v (id, site, c{n}) VALUES ({id}, '{site}', {value});"
            ));
        }
    }
    sql
}

/// Queries, one a type: all its values as bytes and as text. Each by itself, so that a difference has a name.
pub fn bytes_sql(schema: &str) -> Vec<(&'static str, String)> {
    let one = |(n, (of, send, _)): (usize, &(&'static str, &str, &[&str]))| {
        // The bytes of an array name the number of its elements' type, which is new where the type was made again.
        let value = match of.strip_suffix("[]").filter(|element| element.starts_with("public.")) {
            Some(_) => {
                format!("(SELECT string_agg(coalesce(record_send(e)::text, '-'), ',') FROM unnest(c{n}) e)")
            }
            None => format!("{send}(c{n})"),
        };
        let sql = format!(
            "SELECT coalesce(string_agg(id || md5({value}) || md5(c{n}::text), ';' ORDER BY id), '') \
             FROM \"{schema}\".v WHERE c{n} IS NOT NULL"
        );
        (*of, sql)
    };
    TYPES.iter().enumerate().map(one).collect()
}
