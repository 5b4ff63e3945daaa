//! Whose certificates are trusted.
//!
//! Without a word from the operator: the system's authorities, or those that `SSL_CERT_FILE` names. The SDK leaves
//! `AWS_CA_BUNDLE`, which other AWS clients know, to its user.

use std::path::{Path, PathBuf};

use aws_sdk_s3::config::SharedHttpClient;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::error::{RepoError, RepoErrorKind};

const VARIABLE: &str = "AWS_CA_BUNDLE";

/// A client that trusts the authorities in the file that `AWS_CA_BUNDLE` names and no others; none if it names none.
pub(super) fn bundle() -> Result<Option<SharedHttpClient>, RepoError> {
    let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from) else {
        return Ok(None);
    };
    let pem = authorities(&path).map_err(|why| {
        RepoError::new(
            RepoErrorKind::Untrusted,
            format!("{VARIABLE} names `{}`: {why}", path.display()),
            "name a PEM file with the certificates of the authorities that the object store's certificate comes from",
        )
    })?;
    let context =
        TlsContext::builder().with_trust_store(TrustStore::empty().with_pem_certificate(pem)).build();
    let context = context.map_err(|error| RepoError::misuse(format!("no TLS from {VARIABLE}: {error}")))?;
    let client = Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc)).tls_context(context);
    Ok(Some(client.build_https()))
}

/// The file's bytes if every certificate in it can be used: the client would panic over one that cannot.
fn authorities(path: &Path) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(path).map_err(|error| error.to_string())?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(pem) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_has_to_hold_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.pem");
        let missing = authorities(&path).unwrap_err();
        assert!(missing.contains("No such file"), "{missing}");
        std::fs::write(&path, "no certificate").unwrap();
        assert_eq!(authorities(&path).unwrap_err(), "it holds no certificate");
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(authorities(&path).is_err());
    }
}
