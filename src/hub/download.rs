//! Files of a hub: each is fetched into one that goes on where it was cut, and is compared with what the hub lists, its size and its
//! digest.
//!
//! # When is a download given up?
//!
//! A connection: when nothing came over it for `HF_HUB_DOWNLOAD_TIMEOUT` (10 s unless set, as in Python). A download: when no new byte
//! came for five times as long, over five connections at least, be they silent, cut or refused; a byte that came before, and is
//! sent again by a server without ranges, is no new one. So a slow line is not given up, and a dead one is after 50 s. Each attempt that
//! fails is told in the log, with what is there and how much patience is left.

use std::fs::File;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use http::Response;
use http::StatusCode;
use http::header;
use ureq::Body;

use crate::hub::HubError;
use crate::hub::client::Client;
use crate::hub::id::HubId;
use crate::hub::settings::DOWNLOAD_TIMEOUT;
use crate::hub::tree::ContentDigest;
use crate::hub::tree::Entry;

/// How often a timeout may pass without a new byte: Python's retries.
const PATIENCE: u32 = 5;
/// Between the beginnings of attempts; the first two of those that fail at once are this apart, and later ones twice as much each.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(8);
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
        let mut is_anew = false;
        let patience = self.download_timeout * PATIENCE;
        let (mut furthest, mut last_new, mut failures) = (None, Instant::now(), 0);
        loop {
            let began = Instant::now();
            let before = into.metadata().map_err(failed)?.len();
            let furthest_before = *furthest.get_or_insert(before);
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
                        (furthest, last_new, failures) = (None, Instant::now(), 0);
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
            let bytes = into.metadata().map_err(failed)?.len();
            failures = if bytes > furthest_before { 1 } else { failures + 1 };
            if bytes > furthest_before {
                furthest = Some(bytes);
                last_new = Instant::now();
            }
            let left = patience.saturating_sub(last_new.elapsed());
            if left.is_zero() && failures >= PATIENCE {
                return Err(HubError::Stalled {
                    url,
                    problem,
                    bytes,
                    of: entry.size,
                    attempts: failures,
                    patience,
                });
            }
            tracing::warn!(
                model = %id, file, problem, bytes, of = entry.size, gives_up_in_seconds = left.as_secs_f32().round(),
                "the download was cut, going on"
            );
            let apart = FIRST_WAIT.saturating_mul(1 << (failures - 1).min(8)).min(LONGEST_WAIT);
            // a silence was a wait already
            thread::sleep(apart.saturating_sub(began.elapsed()));
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
    ) -> Result<ContentDigest, Cut> {
        let disk = |source| Cut::Never(HubError::cache("write", partial, source));
        let mut digest = entry.digest();
        let mut done = digest.update_from(into).map_err(disk)?;
        if done > entry.size {
            (done, digest) = (0, entry.digest());
        }
        if done < entry.size || entry.size == 0 {
            let mut answer = self
                .get(url, (done > 0).then_some(done), self.download_timeout)
                .map_err(|error| self.cut(error))?;
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
                    Err(error) => return Err(self.cut(error.into())),
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

    /// Says what a timeout was.
    fn cut(&self, error: ureq::Error) -> Cut {
        Cut::Again(match error {
            ureq::Error::Timeout(_) => {
                format!("nothing came for {} s ({DOWNLOAD_TIMEOUT})", self.download_timeout.as_secs())
            }
            error => error.to_string(),
        })
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
