//! TLS as libpq's `sslmode` has it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgwire_replication::TlsConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::conninfo::Settings;
use super::environment::Environment;
use super::error::ConnectError;
use super::in_home;

/// How much TLS is asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// None.
    Disable,
    /// If the server has it; its certificate is not looked at.
    Prefer,
    /// Always; its certificate is not looked at.
    Require,
    /// Its certificate must come from a known authority.
    VerifyCa,
    /// And must be made out to the host.
    VerifyFull,
}

/// TLS of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tls {
    pub(super) mode: TlsMode,
    root: Option<PathBuf>,
    /// The client's certificate and its key.
    client: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    pub(super) fn new(
        settings: &mut Settings,
        host: &str,
        environment: &Environment,
    ) -> Result<Self, ConnectError> {
        let asked = settings.take("sslmode");
        let mut mode = match asked.as_deref() {
            Some("disable") => TlsMode::Disable,
            None | Some("prefer" | "allow") => TlsMode::Prefer,
            Some("require") => TlsMode::Require,
            Some("verify-ca") => TlsMode::VerifyCa,
            Some("verify-full") => TlsMode::VerifyFull,
            Some(other) => {
                return Err(ConnectError::setting(
                    format!("`{other}` is no `sslmode`"),
                    "the modes are disable, prefer, require, verify-ca, verify-full",
                ));
            }
        };
        let home = environment.home();
        let root = settings.take("sslrootcert").map(PathBuf::from);
        let root = root.or_else(|| in_home(home, ".postgresql/root.crt"));
        // As libpq: who names an authority wants it to be asked.
        if mode == TlsMode::Require && root.is_some() {
            mode = TlsMode::VerifyCa;
        }
        let verifies = matches!(mode, TlsMode::VerifyCa | TlsMode::VerifyFull) && !host.starts_with('/');
        if verifies && root.is_none() {
            return Err(ConnectError::setting(
                "there is no root certificate to verify the server with",
                "name its file with `sslrootcert` or PGSSLROOTCERT (such as /etc/ssl/certs/ca-certificates.crt)",
            ));
        }
        let certificate = settings.take("sslcert").map(PathBuf::from);
        let certificate = certificate.or_else(|| in_home(home, ".postgresql/postgresql.crt"));
        let key = settings.take("sslkey").map(PathBuf::from);
        let key = key.or_else(|| in_home(home, ".postgresql/postgresql.key"));
        Ok(Self { mode, root: root.filter(|_| verifies), client: certificate.zip(key) })
    }

    /// For the replication client, which reads the same files.
    pub(super) fn replication_config(&self) -> TlsConfig {
        use pgwire_replication::SslMode;
        let mode = match self.mode {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            TlsMode::Require => SslMode::Require,
            TlsMode::VerifyCa => SslMode::VerifyCa,
            TlsMode::VerifyFull => SslMode::VerifyFull,
        };
        let (client_cert_pem_path, client_key_pem_path) = self.client.clone().unzip();
        let ca_pem_path = self.root.clone();
        TlsConfig { mode, ca_pem_path, sni_hostname: None, client_cert_pem_path, client_key_pem_path }
    }

    pub(super) fn client_config(&self) -> Result<ClientConfig, ConnectError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = self.verifier(&provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable("TLS", &error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let Some((certificate, key)) = self.client.as_ref().filter(|_| self.mode != TlsMode::Disable) else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates(certificate)?;
        let key = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| unusable(&format!("the key `{}`", key.display()), &error))?;
        builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| unusable(&format!("the certificate `{}`", certificate.display()), &error))
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, ConnectError> {
        let Some(root) = &self.root else { return Ok(Arc::new(Unverified(Arc::clone(provider)))) };
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(certificates(root)?);
        if added == 0 {
            return Err(unusable(&format!("`{}`", root.display()), &"there is no certificate in it"));
        }
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|error| unusable(&format!("`{}`", root.display()), &error))?;
        Ok(if self.mode == TlsMode::VerifyFull { inner } else { Arc::new(AnyName(inner)) })
    }
}

fn unusable(what: &str, error: &dyn std::fmt::Display) -> ConnectError {
    ConnectError::setting(
        format!("{what} cannot be used: {error}"),
        "check sslrootcert, sslcert and sslkey: each names a PEM file",
    )
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(&format!("`{}`", path.display()), &error))
}

/// Encrypts without asking who is there, as `sslmode=require` does.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Asks for a known authority and lets any name be in the certificate, as `sslmode=verify-ca` does.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        match self.0.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
