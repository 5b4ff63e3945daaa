//! pgBackRest as benchmarks use it.

use muster_services::PgBackRest;

#[test]
fn a_cluster_is_restored_beside_itself_as_it_was_at_a_moment() {
    let kept = match PgBackRest::own(&[]) {
        Ok(kept) => kept,
        Err(error) => {
            let said = format!("{error:#}");
            assert!(!PgBackRest::is_installed() && said.contains("apt-get install pgbackrest"), "{said}");
            return;
        }
    };
    assert!(kept.version().unwrap().starts_with("pgBackRest "));
    let source = kept.cluster();
    source.psql("postgres", "CREATE TABLE t (k int); INSERT INTO t VALUES (1)").unwrap();
    kept.back_up().unwrap();
    source.psql("postgres", "INSERT INTO t VALUES (2)").unwrap();
    let at = source.psql("postgres", "SELECT clock_timestamp()").unwrap();
    source.psql("postgres", "DELETE FROM t WHERE k = 1; INSERT INTO t VALUES (3)").unwrap();
    kept.archive_everything().unwrap();

    let side = kept.restore(at.trim()).unwrap();
    assert_eq!(side.cluster.psql("postgres", "SELECT k FROM t ORDER BY k").unwrap(), "1\n2\n");
    assert!(side.cluster.psql("postgres", "INSERT INTO t VALUES (4)").is_err());
    assert_ne!(side.cluster.port(), source.port());
    assert!(!side.files.is_zero() && !side.recovery.is_zero());
    assert_eq!(source.psql("postgres", "SELECT k FROM t ORDER BY k").unwrap(), "2\n3\n");
}
