//! What a client shows a server, and what it asks of a server's certificate.

use std::fmt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use anyhow::anyhow;
use anyhow::bail;
use anyhow::ensure;
use rustls::ClientConfig;
use rustls::ConfigBuilder;
use rustls::DigitallySignedStruct;
use rustls::RootCertStore;
use rustls::SignatureScheme;
use rustls::WantsVerifier;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use tonic::Request;
use tonic::Status;
use tonic::metadata::Ascii;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::transport::Certificate;
use tonic::transport::ClientTlsConfig;
use tonic::transport::Identity;

use crate::disk;
use crate::pem;

/// Where the parts are: all optional.
#[derive(Clone, Debug, Default)]
pub struct CredentialFiles {
    /// The token itself.
    pub token: Option<Token>,
    /// Or a file with nothing but the token.
    pub token_file: Option<PathBuf>,
    /// Who signs server certificates, in PEM, in place of the public roots.
    pub ca: Option<PathBuf>,
    /// A client certificate, in PEM.
    pub certificate: Option<PathBuf>,
    /// Its private key, in PEM.
    pub key: Option<PathBuf>,
    /// Whose the server's certificate shall be, in place of the URL's host.
    pub server_name: Option<String>,
}

/// A secret: it is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(..)")
    }
}

impl From<String> for Token {
    fn from(token: String) -> Self {
        Self(token)
    }
}

/// Read, and ready to be shown.
#[derive(Clone, Default)]
pub struct Credentials {
    authorization: Option<MetadataValue<Ascii>>,
    ca: Option<String>,
    /// Certificate and key.
    identity: Option<(String, String)>,
    server_name: Option<String>,
}

impl CredentialFiles {
    /// Reads them. Fails on what is missing or contradicts itself.
    pub fn read(&self) -> anyhow::Result<Credentials> {
        let Self { token, token_file, ca, certificate, key, server_name } = self;
        let token = match (token, token_file) {
            (Some(_), Some(_)) => {
                bail!("there are a token and a file of one: give REWARM_TOKEN or --token-file")
            }
            (Some(Token(token)), None) => Some(token.clone()),
            (None, Some(path)) => Some(read(path)?),
            (None, None) => None,
        };
        let authorization = token.map(|token| {
            let token = token.trim();
            ensure!(!token.is_empty(), "the token is empty");
            let mut value = MetadataValue::try_from(format!("Bearer {token}"))
                .map_err(|_| anyhow::anyhow!("the token has characters that no header can hold"))?;
            value.set_sensitive(true);
            Ok(value)
        });
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(read_identity(certificate, key)?),
            (None, None) => None,
            _ => bail!("a client certificate needs its key, and a key its certificate: --certificate, --key"),
        };
        Ok(Credentials {
            authorization: authorization.transpose()?,
            ca: ca.as_deref().map(read_ca).transpose()?,
            identity,
            server_name: server_name.clone(),
        })
    }
}

/// The certificates of those who sign others, in PEM.
pub fn read_ca(path: &Path) -> anyhow::Result<String> {
    let text = read_pem(path)?;
    pem::certificates(&text).map_err(|problem| anyhow!("{}: {problem}", path.display()))?;
    Ok(text)
}

/// A certificate and its key, in PEM.
fn read_identity(certificate: &Path, key: &Path) -> anyhow::Result<(String, String)> {
    let (chain_text, key_text) = (read_pem(certificate)?, read_pem(key)?);
    let of = |path: &Path, problem: String| anyhow!("{}: {problem}", path.display());
    let chain = pem::certificates(&chain_text).map_err(|problem| of(certificate, problem))?;
    let parsed = pem::key(&key_text).map_err(|problem| of(key, problem))?;
    pem::check_pair(&chain, &parsed)
        .map_err(|problem| anyhow!("{} with the key {}: {problem}", certificate.display(), key.display()))?;
    Ok((chain_text, key_text))
}

fn read_pem(path: &Path) -> anyhow::Result<String> {
    pem::read(path).with_context(|| format!("read {}", path.display()))
}

fn read(path: &Path) -> anyhow::Result<String> {
    disk::read_to_string(path, disk::HAND_WRITTEN_BYTES).with_context(|| format!("read {}", path.display()))
}

impl Credentials {
    /// The same for a server that is reached by an address, where nobody has said whose its certificate is.
    pub(super) fn for_host(self, host: &str) -> Self {
        let name = || host.trim_matches(['[', ']']).to_owned();
        Self { server_name: self.server_name.or_else(|| Some(name())), ..self }
    }

    /// For tonic.
    pub(super) fn tls(&self) -> ClientTlsConfig {
        let mut config = match &self.ca {
            Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)),
            None => ClientTlsConfig::new().with_webpki_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        match &self.server_name {
            Some(name) => config.domain_name(name),
            None => config,
        }
    }

    /// For connections of our own.
    pub(super) fn client_config(&self) -> anyhow::Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        match &self.ca {
            Some(ca) => {
                for certificate in pem::certificates(ca).map_err(|problem| anyhow!("--ca: {problem}"))? {
                    roots.add(certificate).context("read --ca")?;
                }
            }
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        }
        let builder = builder().with_root_certificates(roots);
        Ok(match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain =
                    pem::certificates(certificate).map_err(|problem| anyhow!("--certificate: {problem}"))?;
                let key = pem::key(key).map_err(|problem| anyhow!("--key: {problem}"))?;
                builder.with_client_auth_cert(chain, key)?
            }
        })
    }

    /// Whose the server's certificate shall be, if it is not the host.
    pub(super) fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// The header line of HTTP/1, if there is a token.
    pub(super) fn header_line(&self) -> String {
        let value = self.authorization.as_ref().and_then(|value| value.to_str().ok());
        value.map_or_else(String::new, |value| format!("Authorization: {value}\r\n"))
    }

    /// Whether somebody has named who signs servers' certificates.
    pub(super) fn has_ca(&self) -> bool {
        self.ca.is_some()
    }

    /// Whether there is a token, which nobody on the way should read.
    pub(super) fn has_token(&self) -> bool {
        self.authorization.is_some()
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        Ok(request)
    }
}

fn builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of TLS 1.2 and 1.3")
}

/// For gRPC with whatever server is there.
pub(super) fn trusting_any() -> ClientConfig {
    let mut config =
        builder().dangerous().with_custom_certificate_verifier(Arc::new(Anybody)).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Takes any certificate for what it says, as whoever starts containers does in a probe.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
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
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
