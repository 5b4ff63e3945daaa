//! The page holds everything of the report and nothing that the report smuggles in.
#![expect(clippy::unwrap_used, reason = "a failed step of a test must end it")]

#[path = "support/balanced.rs"]
mod balanced;
#[path = "../examples/sample_report/synthetic.rs"]
mod synthetic;

use balanced::assert_balanced;
use muster_dashboard::report_page;
use muster_types::plan::StepKey;
use muster_types::report::Failure;

#[test]
fn every_site_and_store_is_on_the_page() {
    let report = synthetic::report(883, 7, 0);
    let page = report_page(&report);
    assert_balanced(&page);
    assert!(page.contains("883 of 883 sites restored"));
    for site in &report.sites {
        assert_eq!(page.matches(&format!("<tbody id=\"{}\"", site.site)).count(), 1, "{}", site.site);
    }
    let stores: usize = report.sites.iter().map(|site| site.stores.len()).sum();
    assert_eq!(page.matches("<td class=\"dig\">").count(), stores);
    assert!(page.contains("120 of 883 sites are drawn"));
    assert!(page.len() < 6 << 20, "{} bytes", page.len());
}

#[test]
fn nothing_is_fetched_from_elsewhere() {
    let page = report_page(&synthetic::report(40, 7, 3));
    for reference in ["http:", "https:", "src=", "url(", "@import", "<link", "<iframe"] {
        assert!(!page.contains(reference), "{reference}");
    }
}

#[test]
fn names_and_errors_stay_text() {
    let mut report = synthetic::report(3, 2, 0);
    let evil = "<script>alert(1)</script>\"'><img onerror=x>&amp;</style></title>";
    report.title = evil.to_owned();
    for site in &mut report.sites {
        site.facts.name = Some(evil.to_owned());
        site.facts.customer = Some(evil.to_owned());
        site.facts.tier = Some(evil.to_owned());
        site.stores[0].reached_because = evil.to_owned();
        site.stores[0].tables.clear();
        let digest = muster_types::Digest::of(b"x");
        site.stores[0].tables.insert(evil.to_owned(), muster_types::journal::TableDigest { rows: 1, digest });
        site.failure = Some(Failure { step: StepKey::Check(site.site.clone()), error: evil.to_owned() });
    }
    report.notes[0].text = evil.to_owned();
    report.notes[0].hint = evil.to_owned();
    report.proof.shards.values_mut().for_each(|shard| {
        (shard.holds, shard.error) = (false, Some(evil.to_owned()));
    });
    let page = report_page(&report);
    assert_balanced(&page);
    assert_eq!(page.matches("<script>").count(), 1, "the page's own only");
    assert!(!page.contains("<img") && page.contains("&lt;img onerror=x&gt;&amp;amp;"));
}

#[test]
fn failures_come_first() {
    let report = synthetic::report(10, 3, 2);
    let page = report_page(&report);
    assert_balanced(&page);
    let place = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is not on the page"));
    assert!(place("8 of 10 sites restored") < place("id=\"failures\""));
    assert!(place("id=\"failures\"") < place("id=\"figures\""));
    assert!(page.contains("(site_id, username) = ('s-1', 'ada') is held by site:s-01999"));
    assert!(place("<tbody id=\"site:s-00001\" data-t") < place("<tbody id=\"site:s-00002\""));
    assert!(page.contains("1 row of site_contact changed without an entry in the log"));
    assert!(place("commits-behind-cut") < place("licensed-without-store"), "warnings before infos");
}

#[test]
fn one_site_none_and_no_stores_are_pages_too() {
    for (sites, stores, failed) in [(0, 0, 0), (1, 7, 0), (1, 0, 0), (1, 1, 1), (121, 1, 121)] {
        let page = report_page(&synthetic::report(sites, stores, failed));
        assert_balanced(&page);
        assert!(!page.contains("NaN") && !page.contains("inf\""), "{sites} {stores} {failed}");
        assert_eq!(page.matches("<tbody id=\"site:").count() as u64, sites);
    }
}
