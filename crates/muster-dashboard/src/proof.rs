//! What is proven of the neighbours.

use maud::{Markup, html};
use muster_types::report::{ProofReport, ShardProof};
use muster_types::request::ProofLevel;

use crate::figures;

/// Some shard's proof did not come out even.
pub(crate) fn failed(proof: &ProofReport) -> bool {
    proof.shards.values().any(|shard| !shard.holds)
}

/// The section.
pub(crate) fn section(proof: &ProofReport) -> Markup {
    html! {
        section #proof {
            h2 { "Neighbours" }
            p {
                "Every row change that carries this run's marks was read back from the shards' logs: "
                b { (figures::count(proof.marked_changes)) " changes" } " of "
                b { (figures::plural(proof.sites_proven, "site")) }
                ", each a staged row of the site it belongs to."
            }
            @match proof.level {
                ProofLevel::Marked => p.dim {
                    "The full form (digests of all other rows, before and after) was not asked for."
                },
                ProofLevel::Full => (full(proof)),
            }
        }
    }
}

fn full(proof: &ProofReport) -> Markup {
    html! {
        p {
            "In full: each shard's other rows digested before and after, the difference explained by their own logged changes. "
            @if failed(proof) { b.bad { "It does not hold everywhere." } }
            @else if proof.shards.is_empty() { span.dim { "No shard has been digested yet." } }
            @else { b.good { "It holds in every shard." } }
        }
        @if !proof.shards.is_empty() {
            div.scroll {
                table {
                    thead {
                        tr {
                            th scope="col" { "shard" }
                            th.n scope="col" { "rows of neighbours" }
                            th.n scope="col" { "their changes meanwhile" }
                            th scope="col" { "digests" }
                        }
                    }
                    tbody { @for (shard, found) in &proof.shards { (row(shard.as_str(), found)) } }
                }
            }
        }
    }
}

fn row(shard: &str, found: &ShardProof) -> Markup {
    html! {
        tr {
            th scope="row" { (shard) }
            td.n { (figures::count(found.rows)) }
            td.n { (figures::count(found.changes)) }
            td {
                @if found.holds { span.good { "✓ equal" } }
                @else { span.bad { "✗ " (found.error.as_deref().unwrap_or("not equal")) } }
            }
        }
    }
}
