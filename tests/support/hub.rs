//! A hub on loopback: repositories with commits and branches, large files behind a redirect to another host, and
//! whatever goes wrong with hubs.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;

use serde_json::json;

/// The files of a commit, by their paths.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// All files of a directory.
pub(crate) fn files_in(dir: &Path) -> Files {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.is_file());
    files
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect()
}

/// SHA-256, in hexadecimal.
pub(crate) fn digest(content: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, content);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Git's, of a file.
pub(crate) fn git_digest(content: &[u8]) -> String {
    let mut all = format!("blob {}\0", content.len()).into_bytes();
    all.extend(content);
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &all);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) has_token: bool,
    pub(crate) range: Option<String>,
}

/// How a repository answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Access {
    #[default]
    Public,
    Gated,
    /// To whoever shows any token.
    BadToken,
}

#[derive(Default)]
struct Repository {
    /// The commits of branches.
    branches: BTreeMap<String, String>,
    commits: BTreeMap<String, Files>,
}

#[derive(Default)]
struct State {
    repositories: BTreeMap<String, Repository>,
    access: Access,
    asked: Vec<Asked>,
    /// After so many bytes of the next large file its connection breaks.
    cut_after: Option<usize>,
    /// After so many bytes of the next large files nothing more comes, and the connection stays.
    stalls: VecDeque<usize>,
    /// Answers the next large file without regard to ranges.
    ignores_ranges: bool,
    /// The file whose last byte is not the one that is listed.
    damaged: Option<&'static str>,
    /// A file that is listed with another size than it has.
    listed: Option<(&'static str, u64)>,
    /// Answers 503 to all.
    is_down: bool,
}

/// A running hub. It ends with the process.
#[derive(Clone)]
pub(crate) struct TestHub {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl TestHub {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Self { port: listener.local_addr().unwrap().port(), state: Arc::default() };
        let answering = hub.clone();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let hub = answering.clone();
                // who is cut off, or cuts us off, is no matter of the others
                thread::spawn(move || hub.answer(connection));
            }
        });
        hub
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Puts a commit there and moves the branch `main` to it.
    pub(crate) fn push(&self, repository: &str, files: Files) -> String {
        let commit = git_digest(format!("{repository} {files:?}").as_bytes());
        let mut state = self.state.lock().unwrap();
        let Repository { branches, commits } = state.repositories.entry(repository.to_owned()).or_default();
        branches.insert("main".to_owned(), commit.clone());
        commits.insert(commit.clone(), files);
        commit
    }

    pub(crate) fn set_access(&self, access: Access) {
        self.state.lock().unwrap().access = access;
    }

    pub(crate) fn cut_after(&self, bytes: usize) {
        self.state.lock().unwrap().cut_after = Some(bytes);
    }

    pub(crate) fn stall(&self, after_bytes: impl IntoIterator<Item = usize>) {
        self.state.lock().unwrap().stalls = after_bytes.into_iter().collect();
    }

    pub(crate) fn ignore_ranges(&self) {
        self.state.lock().unwrap().ignores_ranges = true;
    }

    pub(crate) fn damage(&self, file: Option<&'static str>) {
        self.state.lock().unwrap().damaged = file;
    }

    pub(crate) fn list(&self, file: &'static str, bytes: u64) {
        self.state.lock().unwrap().listed = Some((file, bytes));
    }

    pub(crate) fn set_down(&self, is_down: bool) {
        self.state.lock().unwrap().is_down = is_down;
    }

    /// What was asked for since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    fn answer(&self, mut stream: TcpStream) -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        let request = lines.next()?.ok()?;
        let path = request.split(' ').nth(1)?.to_owned();
        let (mut has_token, mut range) = (false, None);
        for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            match name.to_lowercase().as_str() {
                "authorization" => has_token = value.trim() == "Bearer hf_secret",
                "range" => range = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        let mut state = self.state.lock().unwrap();
        state.asked.push(Asked { path: path.clone(), has_token, range: range.clone() });
        let mut answer = self.answer_to(&mut state, &path, has_token, range.as_deref());
        let stall = path.starts_with("/cdn/").then(|| state.stalls.pop_front()).flatten();
        drop(state);
        let Some(bytes) = stall else { return stream.write_all(&answer).ok() };
        let head = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        answer.truncate(head + bytes);
        stream.write_all(&answer).ok()?;
        // until the other side gives up
        stream.read(&mut [0]).ok().map(drop)
    }

    fn answer_to(&self, state: &mut State, path: &str, has_token: bool, range: Option<&str>) -> Vec<u8> {
        let json = |value: serde_json::Value| response("200 OK", "", value.to_string().as_bytes());
        let error = |status: &str, code: &str| response(status, &format!("X-Error-Code: {code}\r\n"), b"{}");
        if state.is_down {
            return response("503 Service Unavailable", "", b"");
        }
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        if let ["cdn", wanted] = parts.as_slice() {
            return large_file(state, wanted, range);
        }
        match state.access {
            // what there is may be seen by all, as on the hub
            Access::Gated if parts[0] == "api" => {}
            Access::Gated if has_token => return error("403 Forbidden", "GatedRepo"),
            Access::Gated => return error("401 Unauthorized", "GatedRepo"),
            Access::BadToken if has_token => {
                return response("401 Unauthorized", "X-Error-Message: Invalid credentials\r\n", b"");
            }
            _ => {}
        }
        let (is_api, repository, rest) = match parts.as_slice() {
            ["api", "models", org, name, rest @ ..] => (true, format!("{org}/{name}"), rest),
            [org, name, rest @ ..] => (false, format!("{org}/{name}"), rest),
            _ => return error("404 Not Found", ""),
        };
        let Some(Repository { branches, commits }) = state.repositories.get(&repository) else {
            // as the hub does, which tells strangers nothing
            return error(if has_token { "404 Not Found" } else { "401 Unauthorized" }, "RepoNotFound");
        };
        match (is_api, rest) {
            (true, ["revision", revision]) => match branches.get(*revision) {
                Some(commit) => json(json!({"id": repository, "sha": commit, "siblings": []})),
                None => error("404 Not Found", "RevisionNotFound"),
            },
            (true, ["tree", rest]) => {
                let (commit, query) = rest.split_once('?').unwrap_or((rest, ""));
                let Some(files) = commits.get(commit) else {
                    return error("404 Not Found", "RevisionNotFound");
                };
                // two pages, the second with the second half
                let half = files.len().div_ceil(2);
                let second = query.contains("cursor=2");
                let page = files.iter().skip(if second { half } else { 0 }).take(half);
                let mut listed: Vec<_> = page.map(|(path, content)| entry(path, content)).collect();
                if let Some((file, bytes)) = state.listed {
                    for entry in listed.iter_mut().filter(|entry| entry["path"] == file) {
                        (entry["size"], entry["lfs"]["size"]) = (bytes.into(), bytes.into());
                    }
                }
                listed.push(
                    json!({"type": "directory", "path": "onnx", "oid": git_digest(b"onnx"), "size": 0}),
                );
                let next = format!(
                    "Link: <{}/api/models/{repository}/tree/{commit}?recursive=true&cursor=2>; rel=\"next\"\r\n",
                    self.endpoint()
                );
                let next = if second { "" } else { &next };
                response("200 OK", next, json!(listed).to_string().as_bytes())
            }
            (false, ["resolve", commit, file @ ..]) => {
                let file = file.join("/");
                let Some(content) = commits.get(*commit).and_then(|files| files.get(&file)) else {
                    return error("404 Not Found", "EntryNotFound");
                };
                let commit = format!("X-Repo-Commit: {commit}\r\n");
                match is_large(&file) {
                    // by its other name: another host
                    true => response(
                        "302 Found",
                        &format!(
                            "{commit}Location: http://localhost:{}/cdn/{}\r\nX-Linked-Size: {}\r\nX-Linked-Etag: \"{}\"\r\n",
                            self.port,
                            digest(content),
                            content.len(),
                            digest(content)
                        ),
                        b"",
                    ),
                    false => response(
                        "200 OK",
                        &format!("{commit}ETag: \"{}\"\r\n", git_digest(content)),
                        &sent(state.damaged, &file, content),
                    ),
                }
            }
            _ => error("404 Not Found", ""),
        }
    }
}

fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors") || path.ends_with(".bin")
}

fn entry(path: &str, content: &[u8]) -> serde_json::Value {
    let mut entry = json!({"type": "file", "path": path, "oid": git_digest(content), "size": content.len()});
    if is_large(path) {
        entry["lfs"] = json!({"oid": digest(content), "size": content.len(), "pointerSize": 128});
        entry["xetHash"] = json!(digest(path.as_bytes()));
    }
    entry
}

fn large_file(state: &mut State, wanted: &str, range: Option<&str>) -> Vec<u8> {
    let all = state
        .repositories
        .values()
        .flat_map(|repository| repository.commits.values())
        .flat_map(BTreeMap::iter);
    let (path, content) = all.into_iter().find(|(_, content)| digest(content) == wanted).unwrap();
    let content = sent(state.damaged, path, content);
    let from: usize = range
        .filter(|_| !std::mem::take(&mut state.ignores_ranges))
        .map_or(0, |range| range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap());
    let size = content.len();
    let mut answer = match from {
        0 => response("200 OK", "", &content),
        from => response(
            "206 Partial Content",
            &format!("Content-Range: bytes {from}-{}/{size}\r\n", size - 1),
            &content[from..],
        ),
    };
    if let Some(bytes) = state.cut_after.take() {
        answer.truncate(answer.len() - (size - from) + bytes);
    }
    answer
}

/// What goes over the wire for a file.
fn sent(damaged: Option<&str>, path: &str, content: &[u8]) -> Vec<u8> {
    let mut content = content.to_vec();
    if damaged == Some(path) {
        *content.last_mut().unwrap() ^= 1;
    }
    content
}

fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// The paths of files in what was asked for.
pub(crate) fn files_asked(asked: &[Asked]) -> BTreeSet<String> {
    let file = |asked: &Asked| Some(asked.path.split_once("/resolve/")?.1.split_once('/')?.1.to_owned());
    asked.iter().filter_map(file).collect()
}
