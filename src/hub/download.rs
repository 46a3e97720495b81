//! Files of a hub: each is fetched into one that goes on where it was cut, and is compared with what the hub lists, its size and its
//! digest.

use std::fs::File;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;

use http::Response;
use http::StatusCode;
use http::header;
use ureq::Body;

use crate::hub::HubError;
use crate::hub::client::Client;
use crate::hub::id::HubId;
use crate::hub::tree::Digest;
use crate::hub::tree::Entry;

/// Before an attempt; after one that brought something, they are counted anew.
const WAITS_SECONDS: [u64; 5] = [0, 1, 2, 4, 8];
const BUFFER_BYTES: usize = 1 << 20;

/// Why an attempt did not bring the rest of a file.
enum Cut {
    /// Another one may.
    Again(String),
    /// None will.
    Never(HubError),
}

impl Client {
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
                Ok(digest) => {
                    let Some(difference) = entry.difference(digest) else {
                        into.sync_all().map_err(failed)?;
                        return Ok(());
                    };
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
                        problem: format!("{difference}: it was damaged on its way"),
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
    ) -> Result<Digest, Cut> {
        let disk = |source| Cut::Never(HubError::cache("write", partial, source));
        let mut digest = entry.digest();
        let mut done = digest.update_from(into).map_err(disk)?;
        if done > entry.size {
            (done, digest) = (0, entry.digest());
        }
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
                (done, digest) = (0, entry.digest()); // it sends the whole
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
        Ok(digest)
    }
}

/// Whether an answer goes on from there; one without a range is the whole.
fn continues_at(answer: &Response<Body>, done: u64) -> bool {
    let range = answer.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    answer.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.starts_with(&format!("bytes {done}-")))
}

/// One part of a path, for a URL.
fn escape(part: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    part.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
