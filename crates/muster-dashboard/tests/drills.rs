//! The page of drills holds what the history says and nothing that it smuggles in.
#![expect(clippy::unwrap_used, reason = "a failed step of a test must end it")]

#[path = "support/balanced.rs"]
mod balanced;
#[path = "../examples/sample_history/synthetic.rs"]
mod synthetic;

use balanced::assert_balanced;
use muster_dashboard::drill_page;
use muster_types::drill::Verdict;

#[test]
fn none_few_and_many_drills_are_pages() {
    for drills in [0, 1, 3, 1_200] {
        let history = synthetic::history(drills);
        let page = drill_page(&history);
        assert_balanced(&page);
        assert!(!page.contains("NaN") && !page.contains("inf\""), "{drills}");
        assert!(page.len() < 1 << 20, "{drills}: {} bytes", page.len());
        for reference in ["http:", "https:", "src=", "url(", "@import", "<link", "<iframe", "<script"] {
            assert!(!page.contains(reference), "{reference}");
        }
    }
}

#[test]
fn what_was_proven_what_never_was_and_what_failed_is_on_the_page() {
    let history = synthetic::history(1_200);
    let page = drill_page(&history);
    let place = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is not on the page"));
    assert!(place("1 alarm") < place("id=\"coverage\""));
    assert!(place("id=\"alarms\"") < place("id=\"coverage\""), "what failed comes first");
    for site in &history.sites.never {
        assert!(page.contains(&format!("<code>{site}</code>")), "{site}");
    }
    assert!(page.contains("1\u{202f}740 of 2\u{202f}000") && page.contains("27 of 30"));
    for class in &history.classes {
        assert!(page.contains(&format!("<th scope=\"row\">{}</th>", class.class.name())));
    }
    for trend in &history.trends {
        assert!(page.contains(&format!("Trend of {}", trend.name)));
    }
    let failed: Vec<_> = history.drills.iter().filter(|drill| drill.verdict == Verdict::Failed).collect();
    assert!(failed.len() > 20 && page.contains(&format!("Failed: {} drills", failed.len())));
    for drill in failed {
        assert!(page.contains(&drill.id.to_string()), "{}", drill.id);
    }
}

#[test]
fn a_figure_above_its_limit_is_marked() {
    let mut history = synthetic::history(1_200);
    let marks = |history: &_| drill_page(history).matches("class=\"failed\" cx").count();
    let late = marks(&history);
    history.factor = 100.0;
    assert!(marks(&history) < late);
}

#[test]
fn names_and_errors_stay_text() {
    let mut history = synthetic::history(100);
    let evil = "<script>alert(1)</script>\"'><img onerror=x>&amp;</style></title>";
    history.alarms = vec![evil.to_owned()];
    for trend in &mut history.trends {
        trend.name = evil.to_owned();
    }
    for drill in &mut history.drills {
        (drill.name, drill.errors) = (evil.to_owned(), vec![evil.to_owned()]);
    }
    let page = drill_page(&history);
    assert_balanced(&page);
    assert!(!page.contains("<script") && !page.contains("<img"));
    assert!(page.contains("&lt;img onerror=x&gt;&amp;amp;"));
}
