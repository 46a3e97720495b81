//! Why a server could not be reached, in words that say what to do: once, and not as each layer below repeats it.

use std::error::Error;
use std::io;

use rustls::AlertDescription;
use rustls::CertificateError;
use rustls::InvalidMessage;

/// The cause of a failed connection to `url`; `has_ca`: the user has named an authority.
pub(super) fn of_connection(error: &(dyn Error + 'static), url: &str, has_ca: bool) -> String {
    if let Some(problem) = of_tls_within(error, has_ca) {
        return problem;
    }
    let cause = causes(error).last().unwrap_or(error);
    let is_cut = cause.downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof)
    });
    match is_cut && url.starts_with("https:") {
        true => format!("{cause}: does this port speak TLS? One without is asked by http://"),
        false => cause.to_string(),
    }
}

/// What TLS has to say of an error, if it was TLS.
pub(super) fn of_tls_within(error: &(dyn Error + 'static), has_ca: bool) -> Option<String> {
    causes(error).find_map(tls_problem).map(|problem| of_tls(problem, has_ca))
}

/// An error, and what it was caused by.
fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn tls_problem<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let within = |error: &'e io::Error| error.get_ref()?.downcast_ref();
    error.downcast_ref().or_else(|| error.downcast_ref().and_then(within))
}

fn of_tls(problem: &rustls::Error, has_ca: bool) -> String {
    use rustls::Error as E;
    match problem {
        E::InvalidCertificate(problem) => of_certificate(problem, has_ca),
        E::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "it answers without TLS: ask it by http://".to_owned()
        }
        E::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            "it speaks TLS, but no gRPC: is this the port of HTTP, or of metrics?".to_owned()
        }
        E::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError,
        ) => format!(
            "it does not take this client's certificate ({problem}): --certificate and --key show another"
        ),
        problem => problem.to_string(),
    }
}

fn of_certificate(problem: &CertificateError, has_ca: bool) -> String {
    match problem {
        CertificateError::UnknownIssuer => match has_ca {
            true => "its certificate is signed by somebody who is not in the file of --ca".to_owned(),
            false => "its certificate is signed by nobody whom this machine knows: name who signs it with --ca".to_owned(),
        },
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet: are the clocks right?".to_owned()
        }
        CertificateError::NotValidForName => {
            "its certificate is of another name: --server-name says of which it shall be".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "its certificate is not of {}, but of {}: --server-name says of which it shall be",
            expected.to_str(),
            presented.join(", ")
        ),
        // what webpki says has no name of its own in rustls
        problem if format!("{problem:?}").contains("CaUsedAsEndEntity") => {
            "its certificate is that of an authority (CA:TRUE), which no server may show: one has to be signed with it"
                .to_owned()
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. } => {
            "its certificate, or one between it and the root, has a kind of key that is not supported, such as P-521 or RSA \
             below 2048 bits"
                .to_owned()
        }
        problem => problem.to_string(),
    }
}
