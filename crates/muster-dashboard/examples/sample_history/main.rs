//! Writes the page of a synthetic history of drills: `sample_history PATH [DRILLS]`.
#![expect(clippy::unwrap_used, reason = "the texts are literals that parse")]

mod synthetic;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap_or_else(|| "history.html".to_owned());
    let drills = args.next().map_or(Ok(1200), |text| text.parse())?;
    std::fs::write(path, muster_dashboard::drill_page(&synthetic::history(drills)))?;
    Ok(())
}
