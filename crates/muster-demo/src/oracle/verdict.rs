//! What the judge found.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::deletion::DeletionLog;
use crate::fleet::Fleet;
use crate::kind::Kind;

/// Differences kept with their details.
const SHOWN: usize = 20;

/// The judgement of the whole fleet.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Sites that were deleted.
    pub victims: usize,
    /// Sites whose stores all equal a committed state at their recovery points.
    pub victims_equal: usize,
    /// Of these, sites that came back exactly to their deletion: no committed transaction is lost.
    pub victims_exact: usize,
    /// What the others lost, worst first.
    pub lost: Vec<Loss>,
    /// Stores judged.
    pub stores: usize,
    /// Rows of victims compared.
    pub victim_rows: u64,
    /// Rows of neighbours compared.
    pub neighbour_rows: u64,
    /// Every neighbour's row is what the writers left.
    pub neighbours_equal: bool,
    /// Sites that were not deleted.
    pub neighbours: usize,
    /// The longest time from a store's recovery point to the site's deletion, in milliseconds.
    pub gap_most_milliseconds: f64,
    /// The first differences, with details.
    pub differences: Vec<Difference>,
    /// Number of all differences.
    pub differences_count: usize,
}

/// What one site lost.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// The bare site id.
    pub site: String,
    /// Committed transactions that are not in its stores.
    pub transactions: usize,
    /// From the earliest recovery point of a store that lost something to the deletion.
    pub milliseconds: f64,
}

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The shard.
    pub shard: String,
    /// The bare site id, where it is a victim's.
    pub site: Option<String>,
    /// The kind, likewise.
    pub kind: Option<String>,
    /// The table, or what else.
    pub table: String,
    /// In words.
    pub text: String,
}

/// One shard's part of the judgement.
pub(super) struct Part {
    pub(super) shard: String,
    pub(super) stores: Vec<StoreVerdict>,
    pub(super) neighbour_rows: u64,
    pub(super) neighbours_equal: bool,
    pub(super) differences: Vec<(Option<usize>, Difference)>,
}

impl Part {
    pub(super) fn new(shard: &str) -> Self {
        Self {
            shard: shard.to_owned(),
            stores: Vec::new(),
            neighbour_rows: 0,
            neighbours_equal: true,
            differences: Vec::new(),
        }
    }
}

/// One store's part.
#[derive(Clone, Debug)]
pub(super) struct StoreVerdict {
    pub(super) site: usize,
    pub(super) kind: Kind,
    pub(super) equal: bool,
    pub(super) rows: u64,
    /// Transactions before the deletion.
    pub(super) transactions: usize,
    /// Of these, how many are not in it.
    pub(super) lost: usize,
    /// From its recovery point to the site's deletion.
    pub(super) gap_milliseconds: f64,
}

impl StoreVerdict {
    pub(super) fn new(site: usize, kind: Kind, began_micros: i64, reached: Option<i64>) -> Self {
        let gap_milliseconds = reached.map_or(0.0, |at| (began_micros - at) as f64 / 1e3);
        Self { site, kind, equal: false, rows: 0, transactions: 0, lost: 0, gap_milliseconds }
    }
}

impl Verdict {
    pub(super) fn of(fleet: &Fleet, log: &DeletionLog, mut parts: Vec<Part>) -> Self {
        parts.sort_by(|a, b| a.shard.cmp(&b.shard));
        let victims: BTreeSet<usize> = log.sites.iter().map(|site| site.index).collect();
        let mut verdict = Self {
            victims: victims.len(),
            neighbours: fleet.sites.len() - victims.len(),
            neighbours_equal: parts.iter().all(|part| part.neighbours_equal),
            neighbour_rows: parts.iter().map(|part| part.neighbour_rows).sum(),
            ..Self::default()
        };
        let mut by_site: BTreeMap<usize, Vec<StoreVerdict>> = BTreeMap::new();
        let mut blamed: BTreeSet<usize> = BTreeSet::new();
        let mut schemas_differ = false;
        for part in parts {
            for (site, mut difference) in part.differences {
                blamed.extend(site);
                schemas_differ |= difference.table == "schema";
                difference.site = site.map(|site| fleet.sites[site].id.clone());
                verdict.differences.push(difference);
            }
            for store in part.stores {
                verdict.stores += 1;
                verdict.victim_rows += store.rows;
                by_site.entry(store.site).or_default().push(store);
            }
        }
        verdict.differences_count = verdict.differences.len();
        // A neighbour's first: nothing is worse.
        verdict.differences.sort_by_key(|difference| difference.site.is_some());
        verdict.differences.truncate(SHOWN);
        verdict.neighbours_equal &= !schemas_differ;
        for site in victims {
            let stores = by_site.remove(&site).unwrap_or_default();
            if !schemas_differ && !blamed.contains(&site) && stores.iter().all(|store| store.equal) {
                verdict.count_site(fleet, site, &stores);
            }
        }
        verdict.lost.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
        verdict
    }

    fn count_site(&mut self, fleet: &Fleet, site: usize, stores: &[StoreVerdict]) {
        self.victims_equal += 1;
        let longest = |stores: &mut dyn Iterator<Item = &StoreVerdict>| {
            stores.map(|store| store.gap_milliseconds).fold(0.0, f64::max)
        };
        self.gap_most_milliseconds = self.gap_most_milliseconds.max(longest(&mut stores.iter()));
        let transactions: usize = stores.iter().map(|store| store.lost).sum();
        if transactions == 0 {
            self.victims_exact += 1;
            return;
        }
        let milliseconds = longest(&mut stores.iter().filter(|store| store.lost > 0));
        self.lost.push(Loss { site: fleet.sites[site].id.clone(), transactions, milliseconds });
    }

    /// Nothing differs.
    pub fn holds(&self) -> bool {
        self.differences_count == 0 && self.neighbours_equal && self.victims_equal == self.victims
    }

    /// Transactions lost over all sites.
    pub fn lost_transactions(&self) -> usize {
        self.lost.iter().map(|loss| loss.transactions).sum()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "victims     {} of {} equal the truth at their recovery points ({} stores, {} rows compared)",
            self.victims_equal, self.victims, self.stores, self.victim_rows
        )?;
        writeln!(f, "exact       {} came back exactly to their deletion", self.victims_exact)?;
        if let Some(worst) = self.lost.first() {
            writeln!(
                f,
                "lost        {} sites lost {} transactions; the longest loss is {:.0} ms ({})",
                self.lost.len(),
                self.lost_transactions(),
                worst.milliseconds,
                worst.site
            )?;
        }
        writeln!(
            f,
            "gap         at most {:.0} ms from a recovery point to its site's deletion",
            self.gap_most_milliseconds
        )?;
        let neighbours = if self.neighbours_equal { "are what their writers left" } else { "DIFFER" };
        writeln!(f, "neighbours  {} sites, {} rows: {neighbours}", self.neighbours, self.neighbour_rows)?;
        for difference in &self.differences {
            writeln!(f, "  DIFFERS   {difference}")?;
        }
        let more = self.differences_count - self.differences.len();
        if more > 0 {
            writeln!(f, "  … and {more} more differences")?;
        }
        write!(f, "{}", if self.holds() { "the oracle agrees" } else { "THE ORACLE DISAGREES" })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.shard)?;
        if let (Some(site), Some(kind)) = (&self.site, &self.kind) {
            write!(f, " site:{site}/{kind}")?;
        }
        write!(f, " {}: {}", self.table, self.text)
    }
}
