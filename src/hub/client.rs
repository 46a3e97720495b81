//! What is asked of a hub, over HTTP: which commit a branch is, and what a commit consists of; files are [`download`]'s.
//!
//! The token goes to the hub, and not to where it sends us for large files.
//!
//! [`download`]: super::download

use std::thread;
use std::time::Duration;

use http::HeaderMap;
use http::Response;
use http::StatusCode;
use http::header;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::Body;
use ureq::config::RedirectAuthHeaders;
use ureq::tls::Certificate;
use ureq::tls::RootCerts;
use ureq::tls::TlsConfig;

use crate::hub::HubError;
use crate::hub::Settings;
use crate::hub::id::HubId;
use crate::hub::id::is_commit;
use crate::hub::tree::Entry;
use crate::hub::tree::Tree;
use crate::pem;

/// Before an attempt; what nobody answers may be in the cache.
const QUESTION_WAITS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(500)];
/// Of an answer in JSON.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// Of a listing; one page has a thousand files.
const MAX_PAGES: usize = 100;

pub(super) struct Client {
    agent: Agent,
    pub(super) endpoint: String,
    token: Option<String>,
    question_timeout: Duration,
    pub(super) download_timeout: Duration,
}

/// An answer in JSON, and where it goes on.
struct Page<T> {
    content: T,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

/// One line of a listing.
#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: String,
    lfs: Option<Large>,
    #[serde(rename = "xetHash")]
    xet_hash: Option<String>,
}

#[derive(Deserialize)]
struct Large {
    oid: String,
    size: u64,
}

impl Client {
    pub(super) fn new(settings: &Settings) -> Result<Self, HubError> {
        let roots = match &settings.certificates {
            None => RootCerts::WebPki,
            Some(path) => {
                let failed = |problem: String| {
                    HubError::Setting(format!("read the certificates {}: {problem}", path.display()))
                };
                let text = pem::read(path).map_err(|error| failed(error.to_string()))?;
                let certificates = pem::certificates(&text).map_err(failed)?;
                let trusted =
                    certificates.iter().map(|certificate| Certificate::from_der(certificate).to_owned());
                RootCerts::from(trusted.collect::<Vec<Certificate<'static>>>())
            }
        };
        let agent = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .user_agent(concat!("rewarm/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .http_status_as_error(false)
            .build()
            .new_agent();
        Ok(Self {
            agent,
            endpoint: settings.endpoint.clone(),
            token: settings.token.clone(),
            question_timeout: settings.question_timeout,
            download_timeout: settings.download_timeout,
        })
    }

    /// Which commit the revision is now.
    pub(super) fn commit_of(&self, id: &HubId) -> Result<String, HubError> {
        let revision = id.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.endpoint, id.repo);
        let Revision { sha } = self.json(id, &url)?.content;
        if !is_commit(&sha) {
            return Err(HubError::Answer { url, problem: format!("`sha` is `{sha}`, which is no commit") });
        }
        Ok(sha)
    }

    /// What a commit consists of.
    pub(super) fn tree(&self, id: &HubId, commit: &str) -> Result<Tree, HubError> {
        let url = format!("{}/api/models/{}/tree/{commit}?recursive=true", self.endpoint, id.repo);
        let mut next = Some(url.clone());
        let mut listed: Vec<Listed> = Vec::new();
        for _ in 0..MAX_PAGES {
            let Some(url) = next.take() else { break };
            let page = self.json::<Vec<Listed>>(id, &url)?;
            listed.extend(page.content);
            next = page.next;
        }
        let files = listed.into_iter().filter(|file| file.kind == "file").map(|file| {
            let entry = Entry {
                size: file.lfs.as_ref().map_or(file.size, |large| large.size),
                blob_id: file.oid,
                lfs_size: file.lfs.as_ref().map(|large| large.size),
                lfs_sha256: file.lfs.map(|large| large.oid),
                xet_hash: file.xet_hash,
            };
            (file.path, entry)
        });
        let tree = Tree::new(files.collect());
        match next.is_none() && tree.is_sound() {
            true => Ok(tree),
            false => Err(HubError::Answer { url, problem: "the list of files is not one".to_owned() }),
        }
    }

    fn json<T: DeserializeOwned>(&self, id: &HubId, url: &str) -> Result<Page<T>, HubError> {
        let mut last = HubError::Unreachable { url: url.to_owned(), problem: "it was not asked".to_owned() };
        for wait in QUESTION_WAITS {
            thread::sleep(wait);
            match self.json_once(id, url) {
                Err(error) if error.is_unreachable() => last = error,
                outcome => return outcome,
            }
        }
        Err(last)
    }

    fn json_once<T: DeserializeOwned>(&self, id: &HubId, url: &str) -> Result<Page<T>, HubError> {
        let unreachable = |error: ureq::Error| {
            let problem = error.to_string();
            // of a company's own authority, mostly: rustls asks no system for those that it trusts
            let is_distrusted = problem.contains("invalid peer certificate");
            let cure = if is_distrusted { ": name the certificates to trust in SSL_CERT_FILE" } else { "" };
            HubError::Unreachable { url: url.to_owned(), problem: format!("{problem}{cure}") }
        };
        let mut answer = self.get(url, None, self.question_timeout).map_err(unreachable)?;
        self.check(id, url, &answer)?;
        let next = next_page(answer.headers());
        let text =
            answer.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec().map_err(unreachable)?;
        let content = serde_json::from_slice(&text)
            .map_err(|error| HubError::Answer { url: url.to_owned(), problem: error.to_string() })?;
        // a token goes to no other place
        let next = next.filter(|next| next.starts_with(&format!("{}/", self.endpoint)));
        Ok(Page { content, next })
    }

    /// Asks for what is at a URL, from that byte on. Connecting, the head of the answer, and each read of its body may take `timeout`.
    pub(super) fn get(
        &self,
        url: &str,
        from: Option<u64>,
        timeout: Duration,
    ) -> Result<Response<Body>, ureq::Error> {
        let timeout = Some(timeout);
        let config = self.agent.get(url).config();
        let timed = config.timeout_connect(timeout).timeout_recv_response(timeout).timeout_per_read(timeout);
        let mut request = timed.build();
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        request.call()
    }

    /// What the hub says where it does not give.
    pub(super) fn check(&self, id: &HubId, url: &str, answer: &Response<Body>) -> Result<(), HubError> {
        let said = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let (repo, endpoint, has_token) = (id.repo.clone(), self.endpoint.clone(), self.token.is_some());
        let code = said("x-error-code").unwrap_or_default();
        let message = said("x-error-message").unwrap_or_default();
        match (answer.status(), code) {
            (status, _) if status.is_success() => Ok(()),
            (_, "GatedRepo") => Err(HubError::Gated { repo, endpoint, has_token }),
            (status, "EntryNotFound") => Err(HubError::Answer {
                url: url.to_owned(),
                problem: format!("it answers {status} {message}"),
            }),
            (_, "RevisionNotFound") => {
                Err(HubError::NoRevision { repo, revision: id.revision.clone(), endpoint })
            }
            // without a token it does not tell what is not there from what is not ours to see
            (StatusCode::UNAUTHORIZED, _) if has_token && code != "RepoNotFound" => {
                Err(HubError::BadToken { endpoint })
            }
            (StatusCode::FORBIDDEN, "") => Err(HubError::Gated { repo, endpoint, has_token }),
            (StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND, _) => {
                Err(HubError::NoRepository { repo, endpoint, has_token })
            }
            (status, _) if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Err(HubError::Unreachable {
                    url: url.to_owned(),
                    problem: format!("it answers {status} {message}"),
                })
            }
            (status, _) => Err(HubError::Answer {
                url: url.to_owned(),
                problem: format!("it answers {status} {message}"),
            }),
        }
    }
}

/// `Link: <URL>; rel="next"`
fn next_page(headers: &HeaderMap) -> Option<String> {
    let link = headers.get(header::LINK)?.to_str().ok()?;
    let next = link.split(',').find(|link| link.contains("rel=\"next\""))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_owned())
}
