//! TLS of the ports: certificate, key, and who signs client certificates, read from files and read again when they change.
//!
//! A client certificate is asked for in the handshake and demanded of each call (guard.rs): probes of health come without
//! one. A connection that has begun keeps what it began with; what changed holds from the next one on.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::VerifierBuilderError;
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;
use x509_parser::parse_x509_certificate;

use crate::metrics;
use crate::metrics::Port;
use crate::pem;

/// How many clients may come back without a full handshake; each takes a few hundred bytes. A trainer that connects for
/// every sample spends its time on handshakes otherwise.
const RESUMED_SESSIONS: usize = 8192;
/// A certificate that ends sooner is worth a warning.
const SOON: Duration = Duration::from_secs(7 * 24 * 3600);

/// What TLS is made from: files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The server's certificate, and those between it and a root that clients know.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who signs the certificates of clients; every call but health needs one then.
    pub client_ca: Option<PathBuf>,
    /// Ports that stay without TLS.
    pub plain: Vec<Port>,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there, or too large.
    #[error("read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {problem}", .path.display())]
    NotThere {
        /// Which.
        path: PathBuf,
        /// What is the matter with it.
        problem: String,
    },
    /// Certificate and key do not belong together, or are of a kind that is not supported.
    #[error("{} with the key {}: {problem}", .certificate.display(), .key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Which of both, and what can be done.
        problem: String,
    },
    /// Who signs client certificates cannot be used.
    #[error("{}: {problem}", .path.display())]
    ClientCa {
        /// Which.
        path: PathBuf,
        /// What rustls said.
        problem: String,
    },
}

/// What connections are accepted with, as the files were read last.
pub(super) struct Tls {
    config: TlsConfig,
    current: ArcSwap<Accepting>,
}

struct Accepting {
    http1: Arc<ServerConfig>,
    http2: Arc<ServerConfig>,
    /// Until when the certificate holds, where that can be told.
    end: Option<SystemTime>,
    /// Whether the certificate is that of an authority.
    is_authority: bool,
}

impl TlsConfig {
    /// The files.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        [&self.certificate, &self.key].into_iter().chain(&self.client_ca).cloned().collect()
    }

    /// Whether a port has TLS.
    pub(super) fn covers(&self, port: Port) -> bool {
        !self.plain.contains(&port)
    }

    /// Why a certificate that can be used is likely to be refused by clients.
    fn doubt(&self, of: &Accepting) -> Option<String> {
        let path = self.certificate.display();
        if of.is_authority {
            return Some(format!(
                "the certificate {path} is that of an authority (CA:TRUE), which rewarm's clients, and others, take from no \
                 server: sign one with it, or make one with `-addext basicConstraints=critical,CA:FALSE`"
            ));
        }
        match of.end?.duration_since(SystemTime::now()) {
            Err(_) => Some(format!("the certificate {path} has expired: clients will refuse it")),
            Ok(left) if left < SOON => {
                Some(format!("the certificate {path} expires in {} hours", left.as_secs() / 3600))
            }
            Ok(_) => None,
        }
    }

    /// Fails if a server could not use it. What clients may refuse is in the answer, in words.
    pub fn check(&self) -> Result<Option<String>, TlsError> {
        Ok(self.doubt(&accepting(self)?))
    }
}

impl Tls {
    pub(super) fn read(config: TlsConfig) -> Result<Self, TlsError> {
        let current = ArcSwap::from_pointee(accepting(&config)?);
        let this = Self { config, current };
        this.tell();
        Ok(this)
    }

    /// Reads the files again. On any error, what was read before holds on.
    pub(super) fn reread(&self) -> Result<(), TlsError> {
        self.current.store(Arc::new(accepting(&self.config)?));
        self.tell();
        Ok(())
    }

    pub(super) fn config(&self) -> &TlsConfig {
        &self.config
    }

    /// For the next connection.
    pub(super) fn acceptor(&self, is_http2: bool) -> TlsAcceptor {
        let current = self.current.load();
        TlsAcceptor::from(if is_http2 { current.http2.clone() } else { current.http1.clone() })
    }

    fn tell(&self) {
        let current = self.current.load();
        if let Some(end) = current.end {
            metrics::certificate_expires(end.duration_since(UNIX_EPOCH).unwrap_or_default());
        }
        if let Some(doubt) = self.config.doubt(&current) {
            tracing::warn!("{doubt}");
        }
    }
}

/// Who a client certificate is of: the common name of its subject, or all of it where that has none.
pub(super) fn subject(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    Some(name.map_or_else(|| certificate.subject().to_string(), str::to_owned))
}

fn accepting(config: &TlsConfig) -> Result<Accepting, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(&config.certificate)?;
    let end = chain.first().and_then(end_of);
    let not_there = |problem| TlsError::NotThere { path: config.key.clone(), problem };
    let key = pem::key(&read(&config.key)?).map_err(not_there)?;
    let pair = |problem| TlsError::Pair {
        certificate: config.certificate.clone(),
        key: config.key.clone(),
        problem,
    };
    pem::check_pair(&chain, &key).map_err(pair)?;
    let is_authority = chain.first().is_some_and(pem::is_authority);
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of TLS 1.2 and 1.3");
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots(path)?.into(), provider)
                .allow_unauthenticated()
                .build();
            let problem = |error: VerifierBuilderError| TlsError::ClientCa {
                path: path.clone(),
                problem: error.to_string(),
            };
            builder.with_client_cert_verifier(verifier.map_err(problem)?)
        }
    };
    let single = builder.with_single_cert(chain, key);
    let mut http1 = single.map_err(|problem| pair(problem.to_string()))?;
    http1.session_storage = rustls::server::ServerSessionMemoryCache::new(RESUMED_SESSIONS);
    let mut http2 = http1.clone();
    http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    // whoever comes with HTTP/1 all the same is told so in words
    http2.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Accepting { http1: Arc::new(http1), http2: Arc::new(http2), end, is_authority })
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|problem| TlsError::ClientCa { path: path.to_owned(), problem: problem.to_string() })?;
    }
    Ok(roots)
}

/// All certificates of a file: at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    pem::certificates(&read(path)?).map_err(|problem| TlsError::NotThere { path: path.to_owned(), problem })
}

fn read(path: &Path) -> Result<String, TlsError> {
    pem::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// Until when a certificate holds.
fn end_of(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}
