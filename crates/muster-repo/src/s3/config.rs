//! How to reach a bucket.

use std::path::PathBuf;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Region, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
};

use super::trust;
use crate::error::RepoError;

/// A bucket and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Config {
    /// The bucket.
    pub bucket: String,
    /// All keys begin with it; empty, or without slashes at its ends.
    pub prefix: String,
    /// The region; from the environment if absent.
    pub region: Option<String>,
    /// The endpoint's URL; AWS itself if absent.
    pub endpoint: Option<String>,
    /// Bucket in the path and not in the host name, as MinIO and the embedded server want it.
    pub path_style: bool,
    /// Credentials in the format of AWS profile files, section `default`; used if the environment names none.
    pub credentials_file: Option<PathBuf>,
    /// Most requests at once.
    pub requests_in_flight: usize,
}

/// Variables that each name credentials; if one is set, the operator chose, and the default chain is left alone.
const CREDENTIAL_VARIABLES: [&str; 6] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

fn environment_has_credentials() -> bool {
    CREDENTIAL_VARIABLES.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// A server on the same host answers a connect at once or not at all; one far away within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Until the first byte of an answer, which includes sending the body: four parts of 16 MiB at 9 Mbit/s. Longer is a
/// hang.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Attempts inside the SDK, which honours the server's own back-off; patience beyond is ours.
const SDK_ATTEMPTS: u32 = 3;

pub(super) async fn client(config: &S3Config) -> Result<Client, RepoError> {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(SDK_ATTEMPTS)
                .with_initial_backoff(Duration::from_millis(50))
                .with_max_backoff(Duration::from_secs(2)),
        )
        .timeout_config(
            TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT).build(),
        )
        // Bodies are watched by the reader itself, which resumes; a busy machine is no stalled stream.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(region) = &config.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(endpoint) = &config.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(file) = config.credentials_file.as_ref().filter(|_| !environment_has_credentials()) {
        let files = EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, file).build();
        loader = loader.profile_files(files).profile_name("default");
    }
    if let Some(trust) = trust::bundle()? {
        loader = loader.http_client(trust);
    }
    let shared = loader.load().await;
    let s3 = aws_sdk_s3::config::Builder::from(&shared)
        .force_path_style(config.path_style)
        // Not every S3 knows the newer trailing checksums; Muster keeps BLAKE3 digests of its own.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    // The SDK insists on some region for its signature; servers that are not AWS ignore which.
    let s3 = if shared.region().is_none() { s3.region(Region::new("us-east-1")) } else { s3 };
    Ok(Client::from_conf(s3.build()))
}
