//! Who may call, and how much of the server one caller may hold at a time.
//!
//! A token is a name and its permissions and limits, in a file (file.rs) that is read again when it changes. What a caller
//! presents is hashed and compared with every token's hash in constant time; tokens themselves are not kept.
//!
//! A [`Caller`] is admitted once a call, and asked again for each request in it ([`Caller::begin`]): what was struck from
//! the file ends with the request that was under way, also within a stream. What a request holds is given back when
//! its [`Share`] is dropped, whatever became of it.

mod file;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use arc_swap::ArcSwap;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::HeaderMap;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use ring::digest;
use subtle::ConstantTimeEq;
use tokio::sync::Notify;

use crate::engine::Priority;
use crate::metrics;
use crate::metrics::Refused;
pub use crate::service::access::file::TokensError;
use crate::service::status::ServiceError;

/// Of a token.
type Digest = [u8; 32];

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Permission {
    /// Rewards, and what is asked beside them.
    Score,
    /// The page for Prometheus.
    Metrics,
    /// Reload, routing, drain.
    Admin,
}

impl Permission {
    fn name(self) -> &'static str {
        match self {
            Self::Score => "score",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }
}

/// What a token gives.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Grant {
    allow: Vec<Permission>,
    /// Requests in flight; none: any number.
    max_requests: Option<usize>,
    /// Tokens of text in flight; none: any number.
    max_tokens: Option<usize>,
    max_priority: Priority,
}

/// The tokens of a server, as their file was read last.
pub(super) struct Tokens {
    path: PathBuf,
    listed: ArcSwap<Listed>,
}

#[derive(Default)]
struct Listed(Vec<(Digest, Arc<Account>)>);

/// What all tokens of one name hold together. It outlives a reading of the file.
struct Account {
    name: Arc<str>,
    grant: ArcSwap<Grant>,
    held: Mutex<Held>,
    freed: Notify,
}

#[derive(Default)]
struct Held {
    requests: usize,
    tokens: usize,
}

/// Whoever has presented a token that is listed.
#[derive(Clone)]
pub(super) struct Caller {
    tokens: Arc<Tokens>,
    digest: Digest,
    account: Arc<Account>,
}

/// What one request holds of its token's limits.
pub(super) struct Share {
    account: Arc<Account>,
    tokens: usize,
}

impl Tokens {
    pub(super) fn read(path: PathBuf) -> Result<Self, TokensError> {
        let listed = file::read(&path)?;
        let this = Self { path, listed: ArcSwap::from_pointee(Listed::default()) };
        this.list(listed);
        Ok(this)
    }

    /// Reads the file again. On any error, what was read before holds on.
    pub(super) fn reread(&self) -> Result<(), TokensError> {
        self.list(file::read(&self.path)?);
        Ok(())
    }

    /// Puts these in the place of what was listed. Accounts whose name stays go on, with what they hold.
    fn list(&self, read: Vec<file::Read>) {
        let before = self.listed.load();
        let mut listed = Vec::new();
        for file::Read { name, digests, grant } in read {
            metrics::register_token(&name);
            let known = before.0.iter().find(|(_, account)| *account.name == *name);
            let account = match known {
                Some((_, account)) => {
                    account.grant.store(Arc::new(grant));
                    account.clone()
                }
                None => Arc::new(Account {
                    name: name.into(),
                    grant: ArcSwap::from_pointee(grant),
                    held: Mutex::default(),
                    freed: Notify::new(),
                }),
            };
            listed.extend(digests.into_iter().map(|digest| (digest, account.clone())));
        }
        tracing::info!(tokens = listed.len(), "tokens read");
        self.listed.store(Arc::new(Listed(listed)));
        // who waits may find more room, or that he is listed no longer
        before.0.iter().for_each(|(_, account)| account.freed.notify_waiters());
    }

    /// Whoever presents a token in these headers, if he may do what he asks for.
    pub(super) fn admit(
        self: &Arc<Self>,
        headers: &HeaderMap,
        needed: Permission,
    ) -> Result<Caller, (Refused, ServiceError)> {
        let refused = |problem| ServiceError::Unauthenticated { problem };
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let Some(value) = values.next() else {
            return Err((Refused::Missing, refused("there is no token: send `authorization: Bearer TOKEN`")));
        };
        if values.next().is_some() {
            return Err((Refused::Unknown, refused("there are several authorization headers: send one")));
        }
        let digest = presented(value).ok_or((
            Refused::Unknown,
            refused("authorization is neither `Bearer TOKEN` nor basic authentication with the token in it"),
        ))?;
        let account = self.listed.load().find(&digest);
        let account = account.ok_or((Refused::Unknown, refused("the token is not one of this server")))?;
        if !account.grant.load().allow.contains(&needed) {
            let (name, needed) = (account.name.to_string(), needed.name());
            return Err((Refused::Forbidden, ServiceError::Forbidden { name, needed }));
        }
        Ok(Caller { tokens: self.clone(), digest, account })
    }
}

impl Listed {
    /// Compares with all, so that the time tells nothing.
    fn find(&self, digest: &Digest) -> Option<Arc<Account>> {
        let mut found = None;
        for (listed, account) in &self.0 {
            if bool::from(listed.ct_eq(digest)) {
                found = Some(account.clone());
            }
        }
        found
    }
}

/// The digest of the token in a header. In basic authentication, which is what a URL can hold, it is the password, or the
/// name where there is no password.
fn presented(value: &HeaderValue) -> Option<Digest> {
    let value = value.as_bytes().trim_ascii();
    let space = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = (&value[..space], value[space..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return (!rest.is_empty()).then(|| digest_of(rest));
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let pair = BASE64_STANDARD.decode(rest).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':').unwrap_or(pair.len());
    let (name, password) = (&pair[..colon], pair.get(colon + 1..).unwrap_or_default());
    let token = if password.is_empty() { name } else { password };
    (!token.is_empty()).then(|| digest_of(token))
}

fn digest_of(token: &[u8]) -> Digest {
    let digest = digest::digest(&digest::SHA256, token);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

impl Caller {
    /// The token's name.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.account.name
    }

    /// Begins a request, if its token is still listed and one more may be in flight.
    pub(super) fn begin(&self) -> Result<Share, ServiceError> {
        self.check()?;
        self.account.begin().ok_or_else(|| self.account.over("requests", |grant| grant.max_requests))
    }

    /// Waits until it can [`Self::begin`].
    pub(super) async fn begin_when_free(&self) -> Result<Share, ServiceError> {
        loop {
            // enabled before it looks: what is given back in between is not missed
            let mut freed = std::pin::pin!(self.account.freed.notified());
            freed.as_mut().enable();
            self.check()?;
            if let Some(share) = self.account.begin() {
                return Ok(share);
            }
            freed.await;
        }
    }

    fn check(&self) -> Result<(), ServiceError> {
        match self.tokens.listed.load().find(&self.digest) {
            Some(account) if account.grant.load().allow.contains(&Permission::Score) => Ok(()),
            _ => {
                Err(ServiceError::Unauthenticated { problem: "the token is not one of this server any more" })
            }
        }
    }
}

impl Account {
    fn begin(self: &Arc<Self>) -> Option<Share> {
        let max = self.grant.load().max_requests.unwrap_or(usize::MAX);
        let mut held = self.held();
        if held.requests >= max {
            return None;
        }
        held.requests += 1;
        metrics::token_holds(&self.name, held.requests, held.tokens);
        Some(Share { account: self.clone(), tokens: 0 })
    }

    fn over(&self, what: &'static str, limit: impl Fn(&Grant) -> Option<usize>) -> ServiceError {
        let limit = limit(&self.grant.load()).unwrap_or(usize::MAX);
        ServiceError::TokenLimit { name: self.name.to_string(), what, limit }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// The token's name.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.account.name
    }

    /// What a request is treated as that asks for `priority`: no more urgent than its token allows.
    pub(super) fn priority(&self, priority: Priority) -> Priority {
        priority.max(self.account.grant.load().max_priority)
    }

    /// Holds so many tokens of text, until it is dropped.
    pub(super) fn hold(&mut self, tokens: usize) -> Result<(), ServiceError> {
        let max = self.account.grant.load().max_tokens.unwrap_or(usize::MAX);
        if tokens > max {
            let (name, limit) = (self.account.name.to_string(), max);
            return Err(ServiceError::TokenLimitTooSmall { name, tokens, limit });
        }
        let mut held = self.account.held();
        if held.tokens > max - tokens {
            drop(held);
            return Err(self.account.over("tokens", |grant| grant.max_tokens));
        }
        held.tokens += tokens;
        self.tokens += tokens;
        metrics::token_holds(&self.account.name, held.requests, held.tokens);
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.account.held();
        held.requests -= 1;
        held.tokens -= self.tokens;
        metrics::token_holds(&self.account.name, held.requests, held.tokens);
        drop(held);
        self.account.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> (tempfile::TempDir, Arc<Tokens>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        std::fs::write(&path, text).unwrap();
        let tokens = Tokens::read(path).unwrap();
        (folder, Arc::new(tokens))
    }

    fn headers(authorization: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(authorization).unwrap())])
    }

    const A: &str = "0123456789abcdef-a";

    #[test]
    fn a_token_comes_as_bearer_or_in_a_url() {
        let (_folder, tokens) = tokens(&format!("[tokens.a]\ntoken = '{A}'\n"));
        let basic = |pair: String| format!("Basic {}", BASE64_STANDARD.encode(pair));
        for good in [
            format!("Bearer {A}"),
            format!("bearer   {A} "),
            basic(format!("anybody:{A}")),
            basic(format!("{A}:")),
            basic(A.to_owned()),
        ] {
            let caller = tokens.admit(&headers(&good), Permission::Score);
            assert_eq!(&**caller.ok().unwrap().name(), "a", "{good}");
        }
        for bad in [
            format!("Bearer {A}x"),
            "Bearer".into(),
            "Bearer ".into(),
            A.into(),
            basic(format!("{A}:x")),
            basic(":".into()),
        ] {
            let (refused, error) = tokens.admit(&headers(&bad), Permission::Score).err().unwrap();
            assert_eq!(refused, Refused::Unknown, "{bad}");
            assert!(!error.to_string().contains(A), "{error}");
        }
        let refused = |result: Result<Caller, (Refused, ServiceError)>| result.err().unwrap().0;
        assert_eq!(refused(tokens.admit(&HeaderMap::new(), Permission::Score)), Refused::Missing);
        assert_eq!(
            refused(tokens.admit(&headers(&format!("Bearer {A}")), Permission::Admin)),
            Refused::Forbidden
        );
    }

    #[tokio::test]
    async fn limits_are_of_a_name_and_given_back() {
        let (_folder, tokens) = tokens(&format!(
            "[tokens.a]\ntoken = ['{A}', '{A}2']\nmax_requests = 2\nmax_tokens = 100\nmax_priority = 'normal'\n"
        ));
        let caller = |token: &str| tokens.admit(&headers(&format!("Bearer {token}")), Permission::Score).ok();
        let (one, other) = (caller(A).unwrap(), caller(&format!("{A}2")).unwrap());
        let mut first = one.begin().unwrap();
        let mut second = other.begin().unwrap();
        assert!(matches!(one.begin(), Err(ServiceError::TokenLimit { what: "requests", limit: 2, .. })));
        first.hold(60).unwrap();
        assert!(matches!(second.hold(41), Err(ServiceError::TokenLimit { what: "tokens", limit: 100, .. })));
        assert!(matches!(second.hold(101), Err(ServiceError::TokenLimitTooSmall { tokens: 101, .. })));
        second.hold(40).unwrap();
        assert_eq!(first.priority(Priority::Interactive), Priority::Normal);
        assert_eq!(first.priority(Priority::Background), Priority::Background);

        let waiting = tokio::spawn(async move { one.begin_when_free().await.map(drop) });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap().unwrap();
        second.hold(60).unwrap();
    }

    #[test]
    fn what_is_struck_from_the_file_ends_and_what_stays_keeps_what_it_holds() {
        let (folder, tokens) = tokens(&format!("[tokens.a]\ntoken = '{A}'\n[tokens.b]\ntoken = '{A}b'\n"));
        let caller = tokens.admit(&headers(&format!("Bearer {A}")), Permission::Score).ok().unwrap();
        let held = caller.begin().unwrap();
        let write = |text: String| std::fs::write(folder.path().join("tokens.toml"), text).unwrap();
        write(format!("[tokens.a]\ntoken = '{A}'\nmax_requests = 1\n"));
        tokens.reread().unwrap();
        assert!(matches!(caller.begin(), Err(ServiceError::TokenLimit { .. })), "what is held still counts");
        write("[tokens.a".to_owned());
        assert!(tokens.reread().is_err());
        drop(held);
        caller.begin().unwrap();
        write(format!("[tokens.a]\ntoken = '{A}-new'\n"));
        tokens.reread().unwrap();
        assert!(matches!(caller.begin(), Err(ServiceError::Unauthenticated { .. })));
    }

    #[tokio::test]
    async fn whoever_waits_for_a_token_that_is_struck_is_told_at_once() {
        let (folder, tokens) = tokens(&format!("[tokens.a]\ntoken = '{A}'\nmax_requests = 1\n"));
        let caller = tokens.admit(&headers(&format!("Bearer {A}")), Permission::Score).ok().unwrap();
        let held = caller.begin().unwrap();
        let wait = || {
            let caller = caller.clone();
            tokio::spawn(async move { caller.begin_when_free().await.map(drop) })
        };
        let waiting = [wait(), wait(), wait()];
        tokio::task::yield_now().await;
        std::fs::write(folder.path().join("tokens.toml"), format!("[tokens.b]\ntoken = '{A}-b'\n")).unwrap();
        tokens.reread().unwrap();
        for waiting in waiting {
            assert!(matches!(waiting.await.unwrap(), Err(ServiceError::Unauthenticated { .. })));
        }
        drop(held);
    }
}
