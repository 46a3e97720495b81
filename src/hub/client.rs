//! What is asked of a hub, over HTTP: which commit a branch is, what a commit consists of, and files.
//!
//! A file is fetched into one that goes on where it was cut, and is compared with what the hub lists: its size, and its
//! SHA-256 where that is its digest. The token goes to the hub, and not to where it sends us for large files.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;

use http::HeaderMap;
use http::Response;
use http::StatusCode;
use http::header;
use ring::digest::Context;
use ring::digest::SHA256;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::Body;
use ureq::config::RedirectAuthHeaders;
use ureq::tls::Certificate;
use ureq::tls::PemItem;
use ureq::tls::RootCerts;
use ureq::tls::TlsConfig;

use crate::hub::HubError;
use crate::hub::HubId;
use crate::hub::Settings;
use crate::hub::is_commit;
use crate::hub::tree::Entry;
use crate::hub::tree::Tree;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For the beginning of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Without a byte.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Before an attempt; after one that brought something, they are counted anew.
const WAITS_SECONDS: [u64; 5] = [0, 1, 2, 4, 8];
/// The same for questions, of which each has an answer in the cache, perhaps.
const QUESTION_WAITS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(500)];
/// Of an answer in JSON.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// Of a listing; one page has a thousand files.
const MAX_PAGES: usize = 100;
const BUFFER_BYTES: usize = 1 << 20;

pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
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

/// Why an attempt did not bring the rest of a file.
enum Cut {
    /// Another one may.
    Again(String),
    /// None will.
    Never(HubError),
}

impl Client {
    pub(super) fn new(settings: &Settings) -> Result<Self, HubError> {
        let roots = match &settings.certificates {
            None => RootCerts::WebPki,
            Some(path) => {
                let pem = std::fs::read(path).map_err(|error| {
                    HubError::Setting(format!("read the certificates {}: {error}", path.display()))
                })?;
                let certificates: Vec<Certificate<'static>> = ureq::tls::parse_pem(&pem)
                    .filter_map(|item| match item {
                        Ok(PemItem::Certificate(certificate)) => Some(certificate),
                        _ => None,
                    })
                    .collect();
                RootCerts::from(certificates)
            }
        };
        let agent = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .user_agent(concat!("rewarm/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .build()
            .new_agent();
        Ok(Self { agent, endpoint: settings.endpoint.clone(), token: settings.token.clone() })
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
        let mut answer = self.get(url, None).map_err(unreachable)?;
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

    fn get(&self, url: &str, from: Option<u64>) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        request.call()
    }

    /// What the hub says where it does not give.
    fn check(&self, id: &HubId, url: &str, answer: &Response<Body>) -> Result<(), HubError> {
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

    /// Fetches a file of a commit into `partial`, or what is missing there. `progress` is told the bytes that are there.
    pub(super) fn download(
        &self,
        id: &HubId,
        commit: &str,
        file: &str,
        entry: &Entry,
        partial: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), HubError> {
        let path: Vec<String> = file.split('/').map(escape).collect();
        let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, id.repo, path.join("/"));
        let failed = |source| HubError::cache("write", partial, source);
        let mut open = File::options();
        let mut into =
            open.create(true).truncate(false).read(true).write(true).open(partial).map_err(failed)?;
        let (mut attempt, mut is_anew) = (0, false);
        loop {
            let before = into.metadata().map_err(failed)?.len();
            let problem = match self.continue_file(id, &url, (&mut into, partial), entry, progress) {
                Ok(digest) if entry.lfs_sha256.as_ref().is_none_or(|expected| *expected == digest) => {
                    into.sync_all().map_err(failed)?;
                    return Ok(());
                }
                Ok(digest) => {
                    into.set_len(0).map_err(failed)?;
                    // what was there before may be another's, or broken
                    if before > 0 && !is_anew {
                        is_anew = true;
                        tracing::warn!(model = %id, file, "what was fetched before is damaged, fetching it anew");
                        continue;
                    }
                    return Err(HubError::Damaged {
                        id: id.to_string(),
                        file: file.to_owned(),
                        problem: format!(
                            "its SHA-256 is {digest}, the hub lists {}: it was damaged on its way",
                            entry.etag()
                        ),
                    });
                }
                Err(Cut::Never(error)) => return Err(error),
                Err(Cut::Again(problem)) => problem,
            };
            let has_come = into.metadata().map_err(failed)?.len() > before;
            attempt = if has_come { 0 } else { attempt + 1 };
            let Some(wait) = WAITS_SECONDS.get(attempt) else {
                return Err(HubError::Unreachable { url, problem });
            };
            tracing::warn!(model = %id, file, problem, "the download was cut, going on");
            thread::sleep(Duration::from_secs(*wait));
        }
    }

    /// Reads the rest of a file. The digest of the whole.
    fn continue_file(
        &self,
        id: &HubId,
        url: &str,
        (into, partial): (&mut File, &Path),
        entry: &Entry,
        progress: &mut dyn FnMut(u64),
    ) -> Result<String, Cut> {
        let disk = |source| Cut::Never(HubError::cache("write", partial, source));
        let (mut done, mut digest) = match digest_of(into).map_err(disk)? {
            (done, digest) if done <= entry.size => (done, digest),
            _ => (0, Context::new(&SHA256)),
        };
        if done < entry.size || entry.size == 0 {
            let mut answer =
                self.get(url, (done > 0).then_some(done)).map_err(|error| Cut::Again(error.to_string()))?;
            if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
                into.set_len(0).map_err(disk)?;
                return Err(Cut::Again("it has nothing after what is there".to_owned()));
            }
            self.check(id, url, &answer).map_err(|error| match error.is_unreachable() {
                true => Cut::Again(error.to_string()),
                false => Cut::Never(error),
            })?;
            if !continues_at(&answer, done) {
                (done, digest) = (0, Context::new(&SHA256)); // it sends the whole
            }
            into.set_len(done).map_err(disk)?;
            into.seek(SeekFrom::Start(done)).map_err(disk)?;
            let mut body = answer.body_mut().as_reader();
            let mut buffer = vec![0; BUFFER_BYTES];
            loop {
                progress(done);
                let read = match body.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => read,
                    Err(error) => return Err(Cut::Again(error.to_string())),
                };
                done += read as u64;
                if done > entry.size {
                    let problem = format!("it is longer than the {} bytes that the hub lists", entry.size);
                    return Err(Cut::Never(HubError::Answer { url: url.to_owned(), problem }));
                }
                digest.update(&buffer[..read]);
                into.write_all(&buffer[..read]).map_err(disk)?;
            }
        }
        if done < entry.size {
            return Err(Cut::Again(format!("{done} of {} bytes came", entry.size)));
        }
        Ok(digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// How much is there, and its digest so far.
fn digest_of(file: &mut File) -> io::Result<(u64, Context)> {
    let mut digest = Context::new(&SHA256);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut done = 0;
    file.seek(SeekFrom::Start(0))?;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((done, digest)),
            read => {
                digest.update(&buffer[..read]);
                done += read as u64;
            }
        }
    }
}

/// Whether an answer goes on from there; one without a range is the whole.
fn continues_at(answer: &Response<Body>, done: u64) -> bool {
    let range = answer.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    answer.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.starts_with(&format!("bytes {done}-")))
}

/// `Link: <URL>; rel="next"`
fn next_page(headers: &HeaderMap) -> Option<String> {
    let link = headers.get(header::LINK)?.to_str().ok()?;
    let next = link.split(',').find(|link| link.contains("rel=\"next\""))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_owned())
}

/// One part of a path, for a URL.
fn escape(part: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    part.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
