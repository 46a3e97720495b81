//! What TLS is made from, out of files in PEM; and why it cannot be used, in words that say what to do.
//!
//! Parsers of PEM pass over what they do not know: a certificate behind an editor's mark is not an error to them but absent,
//! and with it perhaps the only authority that a list held. So a file is looked at before it is parsed.

use std::io;
use std::io::ErrorKind;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use x509_parser::parse_x509_certificate;
use x509_parser::prelude::X509Certificate;
use x509_parser::public_key::PublicKey;

use crate::disk;

/// The roots of a whole system are some 200 KB.
const PEM_BYTES: u64 = 4 << 20;

/// Names of the keys' kinds that are known well enough to be used all the same. Source: RFC 5480, RFC 8410.
const KINDS: [(&str, &str); 6] = [
    ("1.2.840.10045.3.1.7", "ECDSA with P-256"),
    ("1.3.132.0.34", "ECDSA with P-384"),
    ("1.3.132.0.35", "ECDSA with P-521"),
    ("1.3.132.0.10", "ECDSA with secp256k1"),
    ("1.3.101.112", "Ed25519"),
    ("1.3.101.113", "Ed448"),
];

/// What rustls and ring can sign with. Source: ring 0.17, `signature`.
const USABLE: &str = "take ECDSA with P-256 or P-384, Ed25519, or RSA with 2048 to 4096 bits";

/// The text of a file in PEM.
pub fn read(path: &Path) -> io::Result<String> {
    let bytes = disk::read(path, PEM_BYTES)?;
    let refuse = |problem: &str| Err(io::Error::new(ErrorKind::InvalidData, problem));
    match &bytes[..] {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            return refuse("it is UTF-16: save it as UTF-8, without a byte order mark");
        }
        [0x30, 0x80..=0xff, ..] => {
            return refuse(
                "it is binary (DER or PKCS #12), not PEM: `openssl x509 -inform der`, `openssl pkey -inform der` or \
                 `openssl pkcs12 -nodes` makes PEM of it",
            );
        }
        _ => {}
    }
    // what is not PEM between the parts is a comment, in whatever letters
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if text.contains('\u{feff}') {
        return refuse(
            "it has a byte order mark (BOM), behind which a certificate or a key is not seen: save it as UTF-8 without one",
        );
    }
    Ok(text)
}

/// All certificates of a text: at least one.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(missing(text, "certificate")),
        Err(problem) => Err(format!("a certificate in it is damaged: {problem}")),
    }
}

/// The first private key of a text.
pub fn key(text: &str) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|problem| match problem {
        pem::Error::NoItemsFound if text.contains("ENCRYPTED") => {
            "it has no private key without a password (it is encrypted): `openssl pkey` takes the password away".to_owned()
        }
        pem::Error::NoItemsFound => missing(text, "private key"),
        problem => format!("the private key in it is damaged: {problem}"),
    })
}

fn missing(text: &str, what: &str) -> String {
    let found = text.lines().find_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----"));
    match found {
        Some(found) => format!("it has no {what}, but {}", found.to_lowercase()),
        None => format!("it has no {what} in PEM"),
    }
}

/// Fails, in words, unless a certificate and its key can be used together.
pub fn check_pair(chain: &[CertificateDer<'static>], key: &PrivateKeyDer<'static>) -> Result<(), String> {
    let provider = rustls::crypto::ring::default_provider();
    let Err(problem) = CertifiedKey::from_der(chain.to_vec(), key.clone_key(), &provider) else {
        return Ok(());
    };
    let parsed = chain.first().and_then(|certificate| parse_x509_certificate(certificate).ok());
    let kind = parsed.and_then(|(_, certificate)| kind(&certificate));
    Err(match (problem, kind) {
        (rustls::Error::InconsistentKeys(_), _) => {
            "they do not belong together: the key is another certificate's".to_owned()
        }
        (rustls::Error::General(_), Some(kind)) => format!("the key ({kind}) cannot be used here: {USABLE}"),
        (rustls::Error::General(_), None) => format!("the key cannot be used here: {USABLE}"),
        (problem, _) => problem.to_string(),
    })
}

/// Whether a certificate is that of an authority, as `openssl req -x509` makes them: rustls and others take none from a server.
pub fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    parse_x509_certificate(certificate).is_ok_and(|(_, certificate)| certificate.is_ca())
}

/// The kind of a certificate's key, in words.
fn kind(certificate: &X509Certificate<'_>) -> Option<String> {
    let key = certificate.public_key();
    if let Ok(PublicKey::RSA(key)) = key.parsed() {
        return Some(format!("RSA with {} bits", key.key_size()));
    }
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let oid = curve.unwrap_or_else(|| key.algorithm.algorithm.clone()).to_id_string();
    let known = KINDS.iter().find(|(of, _)| *of == oid).map(|(_, name)| (*name).to_owned());
    Some(known.unwrap_or(oid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_looks_like_pem_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tls.crt");
        let refusal = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read(&path).unwrap_err().to_string()
        };
        assert!(refusal("\u{feff}-----BEGIN CERTIFICATE-----".as_bytes()).contains("byte order mark (BOM)"));
        // two files in one, of which the second had one
        assert!(refusal("-----END CERTIFICATE-----\n\u{feff}-----BEGIN".as_bytes()).contains("(BOM)"));
        assert!(refusal(b"\xff\xfe-\0-\0").contains("UTF-16"));
        assert!(refusal(b"\x30\x82\x01\x0a\xff").contains("openssl x509 -inform der"));
        std::fs::write(&path, "0 is how DER begins, in letters\n-----BEGIN").unwrap();
        assert!(read(&path).is_ok());
    }

    #[test]
    fn what_a_file_holds_instead_is_said() {
        let key_text = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert_eq!(certificates(key_text).unwrap_err(), "it has no certificate, but private key");
        assert_eq!(certificates("nothing").unwrap_err(), "it has no certificate in PEM");
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        assert!(key(encrypted).unwrap_err().contains("password"));
        let cut = "-----BEGIN CERTIFICATE-----\nAAA\n";
        assert!(certificates(cut).unwrap_err().contains("damaged"), "{}", certificates(cut).unwrap_err());
    }
}
