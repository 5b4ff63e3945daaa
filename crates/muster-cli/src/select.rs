//! Choosing sites: by typed ids, from a file, or by a filter on what the directory says.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use muster_types::catalog::SiteHistory;
use muster_types::{ShardName, SiteId, Timestamp};

use crate::{context, exit};

/// Sites by id.
#[derive(Debug, Default, Args)]
pub(crate) struct SiteIds {
    /// Sites, as `site:ID`.
    #[arg(value_name = "SITE")]
    pub(crate) sites: Vec<String>,
    /// A file with one `site:ID` a line; `#` starts a comment.
    #[arg(long, value_name = "FILE")]
    pub(crate) sites_file: Option<PathBuf>,
}

impl SiteIds {
    /// The ids, in order, each once, and those that were named more than once.
    ///
    /// Every wrong id is listed, not only the first: a wrong list is mended in one go.
    pub(crate) fn resolve(&self) -> Result<(Vec<SiteId>, Vec<SiteId>)> {
        let mut texts: Vec<(String, String)> =
            self.sites.iter().map(|text| ("arguments".to_owned(), text.clone())).collect();
        if let Some(path) = &self.sites_file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| exit::input(format!("failed to read `{}`: {error}", path.display())))?;
            for (number, line) in text.lines().enumerate() {
                let id = line.split('#').next().unwrap_or_default().trim();
                if !id.is_empty() {
                    texts.push((format!("{}:{}", path.display(), number + 1), id.to_owned()));
                }
            }
        }
        parse_all(&texts)
    }
}

/// Most wrong ids that one message lists.
const WRONG_IDS_MAX: usize = 10;

fn parse_all(texts: &[(String, String)]) -> Result<(Vec<SiteId>, Vec<SiteId>)> {
    let (mut seen, mut sites, mut repeated, mut wrong) =
        (BTreeSet::new(), Vec::new(), Vec::new(), Vec::new());
    for (place, text) in texts {
        match text.parse::<SiteId>() {
            Ok(site) if seen.insert(site.clone()) => sites.push(site),
            Ok(site) => repeated.push(site),
            Err(error) => wrong.push(format!("{place}: {error}")),
        }
    }
    if !wrong.is_empty() {
        let more = wrong.len().saturating_sub(WRONG_IDS_MAX);
        let mut text = wrong[..wrong.len() - more].join("\n  ");
        if more > 0 {
            text.push_str(&format!("\n  … and {more} more"));
        }
        bail!(exit::Failure::new(
            exit::Exit::Input,
            format!("{} of {} ids are not site ids:\n  {text}", wrong.len(), texts.len())
        ));
    }
    Ok((sites, repeated))
}

/// A moment: RFC 3339, `now`, or `5m ago` with s, m, h or d.
pub(crate) fn moment(text: &str) -> Result<Timestamp> {
    if text == "now" {
        return Ok(context::now());
    }
    if let Some(amount) = text.strip_suffix(" ago") {
        let span: jiff::Span = amount.parse().map_err(|_| {
            exit::input(format!("`{text}` is not a time ago; write it as `5m ago` or `2h ago`"))
        })?;
        let total = span
            .total((jiff::Unit::Second, jiff::SpanRelativeTo::days_are_24_hours()))
            .map_err(|error| exit::input(format!("`{text}` is not a time ago: {error}")))?;
        return Ok(context::now().plus_micros(-(total * 1e6) as i64));
    }
    text.parse().map_err(exit::input)
}

/// A span of time such as `5m` or `24h`, in whole seconds.
pub(crate) fn span_seconds(text: &str) -> Result<u64> {
    let wrong = || exit::input(format!("`{text}` is not a span of time; write it as `90s`, `5m` or `24h`"));
    let span: jiff::Span = text.parse().map_err(|_| wrong())?;
    let seconds =
        span.total((jiff::Unit::Second, jiff::SpanRelativeTo::days_are_24_hours())).map_err(|_| wrong())?;
    if seconds < 1.0 { Err(wrong()) } else { Ok(seconds as u64) }
}

/// Sites by what their directory row says, or by the shard that holds them.
#[derive(Debug, Default, Args)]
pub(crate) struct SiteFilter {
    /// Every site of this region.
    #[arg(long)]
    pub(crate) region: Option<String>,
    /// Every site of this tier.
    #[arg(long)]
    pub(crate) tier: Option<String>,
    /// Every site with rows in this shard.
    #[arg(long)]
    pub(crate) shard: Option<ShardName>,
}

impl SiteFilter {
    /// Whether anything is asked for.
    pub(crate) fn is_set(&self) -> bool {
        self.region.is_some() || self.tier.is_some() || self.shard.is_some()
    }

    fn has_shard(&self, site: &SiteHistory) -> bool {
        self.shard.as_ref().is_none_or(|shard| site.traces.iter().any(|trace| &trace.shard == shard))
    }

    /// Why it cannot be told whether a site is asked for, if it cannot: an object with its facts is harmed.
    pub(crate) fn untold<'a>(&self, site: &'a SiteHistory) -> Option<&'a str> {
        let needed = (self.region.is_some() || self.tier.is_some()) && self.has_shard(site);
        site.facts_unread.as_deref().filter(|_| needed)
    }

    /// Whether a site, with its facts read, is asked for.
    pub(crate) fn matches(&self, site: &SiteHistory) -> bool {
        let facts = site.facts.clone().unwrap_or_default();
        self.has_shard(site)
            && self.region.as_ref().is_none_or(|region| facts.region.as_ref() == Some(region))
            && self.tier.as_ref().is_none_or(|tier| facts.tier.as_ref() == Some(tier))
    }
}

impl fmt::Display for SiteFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("region", &self.region),
            ("tier", &self.tier),
            ("shard", &self.shard.as_ref().map(ToString::to_string)),
        ];
        let said: Vec<String> =
            parts.iter().filter_map(|(name, value)| Some(format!("{name}={}", (*value).as_ref()?))).collect();
        f.write_str(&said.join(" "))
    }
}
