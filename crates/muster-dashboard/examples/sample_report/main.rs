//! Writes the page of a synthetic report: `sample_report PATH [SITES [FAILED]]`.
#![expect(clippy::unwrap_used, reason = "the texts are literals that parse")]

mod synthetic;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap_or_else(|| "report.html".to_owned());
    let sites = args.next().map_or(Ok(883), |text| text.parse())?;
    let failed = args.next().map_or(Ok(0), |text| text.parse())?;
    std::fs::write(path, muster_dashboard::report_page(&synthetic::report(sites, 7, failed)))?;
    Ok(())
}
