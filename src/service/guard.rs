//! Who is let in: before a call reaches its door, whatever it asks.
//!
//! With TLS that names a client CA every call needs a client certificate that it signed, and with tokens every call needs a
//! token that has the port's permission; with both, both. Only health is for everybody: whoever starts containers
//! has neither.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware;
use axum::middleware::Next;
use http::Response;
use http::StatusCode;
use tonic::Code;
use tonic::Status;

use crate::metrics;
use crate::metrics::Method;
use crate::metrics::Port;
use crate::metrics::Refused;
use crate::service::access::Caller;
use crate::service::access::Permission;
use crate::service::access::Tokens;
use crate::service::http::answer;
use crate::service::http::answer::Counted;
use crate::service::http::body;
use crate::service::listener::Peer;
use crate::service::seldom::Seldom;
use crate::service::state::State;
use crate::service::status::ServiceError;
use crate::service::witness::Aside;

/// Between two lines about calls that were refused: each would be a way to fill the disk.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// What of each port is for everybody.
fn is_open(port: Port, path: &str) -> bool {
    match port {
        Port::Reward => {
            path.starts_with("/grpc.health.v1.Health/")
                || matches!(
                    path,
                    "/inference.GRPCInferenceService/ServerLive"
                        | "/inference.GRPCInferenceService/ServerReady"
                )
        }
        Port::Http => matches!(path, "/health" | "/v2/health/live" | "/v2/health/ready"),
        Port::Metrics => matches!(path, "/healthz" | "/readyz"),
        Port::Admin | Port::Ui => false,
    }
}

fn permission(port: Port) -> Permission {
    match port {
        Port::Reward | Port::Http | Port::Ui => Permission::Score,
        Port::Metrics => Permission::Metrics,
        Port::Admin => Permission::Admin,
    }
}

/// The guard of one port.
pub(super) struct Guard {
    port: Port,
    /// None: the server asks for none.
    tokens: Option<Arc<Tokens>>,
    /// Whether a call needs a client certificate.
    needs_certificate: bool,
    state: Arc<State>,
    /// When to speak of calls that it refused.
    said: Mutex<Seldom>,
}

impl Guard {
    pub(super) fn new(
        port: Port,
        tokens: Option<Arc<Tokens>>,
        needs_certificate: bool,
        state: Arc<State>,
    ) -> Self {
        Self { port, tokens, needs_certificate, state, said: Mutex::new(Seldom::new(LOG_PAUSE)) }
    }

    /// The routes behind the guard; as they are, where there is nothing to ask for and nobody to tell.
    pub(super) fn before(self, router: Router) -> Router {
        if self.tokens.is_none() && !self.needs_certificate && !self.state.witness.has_log() {
            return router;
        }
        let this = Arc::new(self);
        router.layer(middleware::from_fn(move |request: Request, next: Next| {
            let this = this.clone();
            async move { this.let_in(request, next).await }
        }))
    }

    fn admit(&self, request: &Request) -> Result<Option<Caller>, (Refused, ServiceError)> {
        if self.needs_certificate && peer(request).is_none_or(|peer| peer.certificate.is_none()) {
            let problem = "there is no client certificate: this server asks for one (mTLS)";
            return Err((Refused::Missing, ServiceError::Unauthenticated { problem }));
        }
        let Some(tokens) = &self.tokens else { return Ok(None) };
        tokens.admit(request.headers(), permission(self.port)).map(Some)
    }

    async fn let_in(&self, mut request: Request, next: Next) -> Response<Body> {
        let begun = Instant::now();
        let peer = peer(&request).map(|peer| peer.address);
        let admitted = match is_open(self.port, request.uri().path()) {
            true => Ok(None),
            false => self.admit(&request),
        };
        let aside = |page, refused, code, token: &str| {
            let elapsed = begun.elapsed();
            let witness = &self.state.witness;
            witness.tell_aside(&Aside { port: self.port, page, refused, code, token, peer, elapsed });
        };
        match admitted {
            Ok(caller) => {
                let token = caller.as_ref().map(|caller| caller.name().clone());
                if let Some(caller) = caller {
                    request.extensions_mut().insert(caller);
                }
                let path = self.state.witness.has_log().then(|| request.uri().path().to_owned());
                let response = next.run(request).await;
                if let Some(path) = path
                    && let Some((is_page, code)) = self.page(&response)
                {
                    aside(is_page.then_some(&*path), None, code, token.as_deref().unwrap_or_default());
                }
                response
            }
            Err((refused, error)) => {
                metrics::call_refused(self.port, refused);
                self.say(&request, &error);
                let token = if let ServiceError::Forbidden { name, .. } = &error { name } else { "" };
                if !token.is_empty() {
                    metrics::token_request_finished(token, error.code() as i32, 0);
                }
                aside(None, Some(refused), error.code(), token);
                match self.port {
                    Port::Reward | Port::Admin => Status::from(error).into_http(),
                    Port::Http | Port::Metrics | Port::Ui => {
                        let (head, rest) = request.into_parts();
                        body::discard(&self.state, &head.headers, rest).await;
                        answer::failed(&error)
                    }
                }
            }
        }
    }

    /// Of an answer that nobody else tells of: whether it is a page that is there, and its code.
    fn page(&self, response: &Response<Body>) -> Option<(bool, Code)> {
        match self.port {
            Port::Reward | Port::Admin => None,
            Port::Http | Port::Ui => {
                let Counted(method, code) = response.extensions().get()?;
                Some((*method == Method::Page, *code))
            }
            Port::Metrics => Some(match response.status() {
                StatusCode::OK => (true, Code::Ok),
                StatusCode::SERVICE_UNAVAILABLE => (true, Code::Unavailable),
                StatusCode::NOT_FOUND => (false, Code::NotFound),
                _ => (false, Code::Unimplemented),
            }),
        }
    }

    fn say(&self, request: &Request, error: &ServiceError) {
        let Some(calls) = self.said.lock().unwrap_or_else(PoisonError::into_inner).pass() else { return };
        let peer = peer(request).map(|peer| peer.address.to_string());
        tracing::warn!(port = self.port.as_str(), peer, %error, calls, "calls were not let in");
    }
}

fn peer(request: &Request) -> Option<&Peer> {
    request.extensions().get()
}
