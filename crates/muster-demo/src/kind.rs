//! What a site can consist of, and which shard of its region holds it.

use serde::{Deserialize, Serialize};

/// A kind of store in the demo fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Kind {
    /// The site's directory row, its configuration and contacts.
    Metadata,
    /// Users, groups, memberships, permissions.
    Identity,
    /// Projects, issues, comments.
    JiraSoftware,
    /// Queues and requests.
    ServiceManagement,
    /// Pages.
    Confluence,
    /// Teams and alerts.
    Opsgenie,
    /// Components and incidents.
    Statuspage,
    /// First-party app of Jira Software.
    Automation,
    /// Third-party app of Jira Software.
    Timesheets,
    /// Third-party app of Confluence.
    Diagrams,
    /// Licences, one row a product or app.
    Licence,
}

/// What a shard is for; each region has one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Metadata and licences.
    Core,
    /// Identity.
    Identity,
    /// Both Jira products and their apps.
    Jira,
    /// Confluence and its app.
    Wiki,
    /// Opsgenie and Statuspage.
    Ops,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [Self::Core, Self::Identity, Self::Jira, Self::Wiki, Self::Ops];

    /// The part of a shard's name behind its region.
    pub fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Identity => "identity",
            Self::Jira => "jira",
            Self::Wiki => "confluence",
            Self::Ops => "ops",
        }
    }

    /// Kinds that such a shard hosts.
    pub fn kinds(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |kind| kind.role() == self)
    }
}

impl Kind {
    /// All kinds, in the order in which they come to life.
    pub const ALL: [Self; 11] = [
        Self::Metadata,
        Self::Identity,
        Self::JiraSoftware,
        Self::ServiceManagement,
        Self::Confluence,
        Self::Opsgenie,
        Self::Statuspage,
        Self::Automation,
        Self::Timesheets,
        Self::Diagrams,
        Self::Licence,
    ];

    /// The name in the topology.
    pub fn name(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Identity => "identity",
            Self::JiraSoftware => "product:jira-software",
            Self::ServiceManagement => "product:jira-service-management",
            Self::Confluence => "product:confluence",
            Self::Opsgenie => "product:opsgenie",
            Self::Statuspage => "product:statuspage",
            Self::Automation => "app:automation",
            Self::Timesheets => "app:timesheets",
            Self::Diagrams => "app:diagrams",
            Self::Licence => "licence",
        }
    }

    /// The kind with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Kinds that must be back first.
    pub fn after(self) -> Vec<Self> {
        match self {
            Self::Metadata => vec![],
            Self::Identity => vec![Self::Metadata],
            Self::JiraSoftware
            | Self::ServiceManagement
            | Self::Confluence
            | Self::Opsgenie
            | Self::Statuspage => vec![Self::Metadata, Self::Identity],
            Self::Automation | Self::Timesheets => vec![Self::JiraSoftware],
            Self::Diagrams => vec![Self::Confluence],
            Self::Licence => Self::ALL.into_iter().filter(|kind| *kind != Self::Licence).collect(),
        }
    }

    /// The shard that holds it.
    pub fn role(self) -> Role {
        match self {
            Self::Metadata | Self::Licence => Role::Core,
            Self::Identity => Role::Identity,
            Self::JiraSoftware | Self::ServiceManagement | Self::Automation | Self::Timesheets => Role::Jira,
            Self::Confluence | Self::Diagrams => Role::Wiki,
            Self::Opsgenie | Self::Statuspage => Role::Ops,
        }
    }

    /// Products and apps have licences.
    pub fn is_licensed(self) -> bool {
        !matches!(self, Self::Metadata | Self::Identity | Self::Licence)
    }
}
