//! Where the topology comes from: a file, or the repository that keeps it.

use std::path::PathBuf;
use std::str::FromStr;

use muster_types::topology::RepositoryConfig;

/// Where the topology comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TopologyPlace {
    /// A file; relative paths in it start at its folder.
    File(PathBuf),
    /// The newest version that a repository keeps; relative paths in it start at the current folder.
    Repository(RepositoryConfig),
}

impl FromStr for TopologyPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("s3://") {
            Some(rest) => repository(rest, |name| std::env::var(name).ok()).map(Self::Repository),
            None => Ok(Self::File(PathBuf::from(text))),
        }
    }
}

/// `BUCKET[/PREFIX][?region=R&endpoint=URL&path_style=BOOL]`; what is left out comes from the variables that every AWS
/// client reads.
fn repository(rest: &str, variable: impl Fn(&str) -> Option<String>) -> Result<RepositoryConfig, String> {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    if bucket.is_empty() {
        return Err("write s3://BUCKET/PREFIX".to_owned());
    }
    let first =
        |names: [&str; 2]| names.iter().find_map(|name| variable(name).filter(|text| !text.is_empty()));
    let mut region = first(["AWS_REGION", "AWS_DEFAULT_REGION"]);
    let mut endpoint = first(["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
    let mut path_style = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("region", value)) => region = Some(value.to_owned()),
            Some(("endpoint", value)) => endpoint = Some(value.to_owned()),
            Some(("path_style", value)) => {
                path_style = Some(value.parse().map_err(|_| "`path_style` is `true` or `false`".to_owned())?);
            }
            _ => {
                return Err(format!(
                    "`{pair}` means nothing here; behind `?` stand `region`, `endpoint` and `path_style`"
                ));
            }
        }
    }
    Ok(RepositoryConfig {
        bucket: bucket.to_owned(),
        prefix: prefix.trim_end_matches('/').to_owned(),
        region: region.unwrap_or_else(|| "us-east-1".to_owned()),
        // What is not AWS has no name for each bucket, as a rule.
        path_style: path_style.unwrap_or(endpoint.is_some()),
        endpoint,
        embedded: None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may say so by a panic")]

    use super::*;

    #[test]
    fn a_repository_is_named_by_a_url_and_the_environment() {
        let environment = |name: &str| match name {
            "AWS_REGION" => Some("eu-west-1".to_owned()),
            "AWS_ENDPOINT_URL" => Some("http://minio:9000".to_owned()),
            _ => None,
        };
        let found = repository("backups/muster/eu/", environment).unwrap();
        assert_eq!((found.bucket.as_str(), found.prefix.as_str()), ("backups", "muster/eu"));
        assert_eq!(
            (found.region.as_str(), found.endpoint.as_deref()),
            ("eu-west-1", Some("http://minio:9000"))
        );
        assert!(found.path_style);
        let told = repository("b?region=r&endpoint=https://s3&path_style=false", environment).unwrap();
        assert_eq!((told.region.as_str(), told.endpoint.as_deref()), ("r", Some("https://s3")));
        assert_eq!((told.prefix.as_str(), told.path_style), ("", false));
        let aws = repository("b/p", |_| None).unwrap();
        assert_eq!((aws.endpoint, aws.path_style), (None, false));
        assert!(repository("/p", |_| None).is_err());
        assert!(repository("b?regoin=r", |_| None).unwrap_err().contains("regoin"));
        assert_eq!("muster.toml".parse(), Ok(TopologyPlace::File("muster.toml".into())));
    }
}
