//! Certificates of a test, made when it runs.

use std::path::Path;
use std::path::PathBuf;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rcgen::date_time_ymd;

/// Who signs.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
pub(crate) struct Signed {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Its own key, in PEM.
    pub(crate) fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// For a server that is known by these names.
    pub(crate) fn server(&self, names: &[&str]) -> Signed {
        self.sign(names, "server", ExtendedKeyUsagePurpose::ServerAuth, false)
    }

    /// For a client of this name.
    pub(crate) fn client(&self, name: &str) -> Signed {
        self.sign(&[], name, ExtendedKeyUsagePurpose::ClientAuth, false)
    }

    /// One whose time is over.
    pub(crate) fn expired_client(&self, name: &str) -> Signed {
        self.sign(&[], name, ExtendedKeyUsagePurpose::ClientAuth, true)
    }

    /// One whose time is over.
    pub(crate) fn expired_server(&self, names: &[&str]) -> Signed {
        self.sign(names, "server", ExtendedKeyUsagePurpose::ServerAuth, true)
    }

    fn sign(&self, names: &[&str], name: &str, purpose: ExtendedKeyUsagePurpose, is_over: bool) -> Signed {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages.push(purpose);
        if is_over {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Signed { certificate, key: key.serialize_pem() }
    }
}

impl Signed {
    /// Writes both into a folder, as `server.crt` and `server.key` for "server".
    pub(crate) fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        std::fs::write(&certificate, &self.certificate).unwrap();
        std::fs::write(&key, &self.key).unwrap();
        (certificate, key)
    }
}
