//! rustls for STARTTLS to remote hosts: made once at the start, handed to every delivery.
//!
//! Two ways: *opportunistic* takes any certificate, for it is still better than clear text (RFC 7435) and a remote
//! without TLS would get the mail as well; *required* trusts what the system trusts, for the name of the host.
//! Both check the handshake's signatures and resume sessions.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;

/// Why there is no TLS. Each text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// rustls refuses the settings.
    #[error("TLS can't be set up ({0}); this is a bug of the relay")]
    Setup(String),
    /// No certificate authority is known, so no certificate can be trusted.
    #[error(
        "the system's certificate authorities can't be read ({0}); install them (Debian: the package \
         ca-certificates), or set tls = \"opportunistic\" where it is \"required\""
    )]
    NoRoots(String),
}

/// The client side of TLS, ready to use. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TlsClients {
    opportunistic: TlsClient,
    required: Result<TlsClient, TlsError>,
}

#[derive(Clone)]
struct TlsClient(Arc<ClientConfig>);

impl std::fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsClient")
    }
}

impl TlsClients {
    /// With the certificate authorities of the system. Blocks: it reads files. Without any, opportunistic TLS works
    /// all the same; see [`Self::required_problem`].
    ///
    /// # Errors
    /// [`TlsError::Setup`].
    pub fn load() -> Result<Self, TlsError> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (added, _unusable) = roots.add_parsable_certificates(found.certs);
        if added > 0 {
            return Self::with_roots(roots);
        }
        let reason = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        Ok(Self { opportunistic: opportunistic()?, required: Err(TlsError::NoRoots(reason)) })
    }

    /// With these certificate authorities.
    ///
    /// # Errors
    /// [`TlsError::Setup`].
    pub fn with_roots(roots: RootCertStore) -> Result<Self, TlsError> {
        Ok(Self { opportunistic: opportunistic()?, required: Ok(required(roots)?) })
    }

    /// Why nothing can be sent where TLS is required, when that is so.
    pub fn required_problem(&self) -> Option<&TlsError> {
        self.required.as_ref().err()
    }

    /// Does the handshakes: with any certificate, or only with a trusted one for the host's name.
    ///
    /// # Errors
    /// [`TlsError::NoRoots`] when a trusted one is asked for.
    pub fn connector(&self, trusted_only: bool) -> Result<TlsConnector, TlsError> {
        let client =
            if trusted_only { self.required.as_ref().map_err(Clone::clone)? } else { &self.opportunistic };
        Ok(TlsConnector::from(Arc::clone(&client.0)))
    }
}

/// The name a host's certificate must have: the one that the MX record or the route gives, else its address.
pub fn server_name(host: &str, address: IpAddr) -> ServerName<'static> {
    ServerName::try_from(host.to_owned()).unwrap_or_else(|_| ServerName::from(address))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn opportunistic() -> Result<TlsClient, TlsError> {
    let provider = provider();
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Setup(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(TlsClient(Arc::new(config)))
}

fn required(roots: RootCertStore) -> Result<TlsClient, TlsError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Setup(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsClient(Arc::new(config)))
}

/// Takes every certificate whose key signed the handshake.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_checked_by_its_name_else_by_its_address() {
        let address = IpAddr::from([192, 0, 2, 1]);
        assert_eq!(server_name("mx.example.org", address), ServerName::try_from("mx.example.org").unwrap());
        assert_eq!(server_name("192.0.2.1", address), ServerName::from(address));
        assert_eq!(server_name("[192.0.2.1]", address), ServerName::from(address));
    }

    #[test]
    fn opportunistic_tls_needs_nothing_of_the_system() {
        assert!(TlsClients::load().unwrap().connector(false).is_ok());
    }

    #[test]
    fn without_authorities_only_opportunistic_tls_works() {
        let clients = TlsClients {
            opportunistic: opportunistic().unwrap(),
            required: Err(TlsError::NoRoots("none found".to_owned())),
        };
        assert!(clients.connector(false).is_ok());
        let error = clients.connector(true).err().unwrap();
        assert_eq!(Some(&error), clients.required_problem());
        assert!(error.to_string().contains("ca-certificates"), "{error}");
    }
}
