//! The page for people (`--ui`): a prompt and its responses, with their rewards by every variant and member side by side,
//! and what the models read of them. One file, which asks the HTTP door behind it on the same port, as any client does.
//!
//! A browser on an operator's machine visits other pages, too, and those must not ask in its name: whoever comes from
//! another page is refused, and so is a name that merely leads to this address.

use std::net::IpAddr;

use axum::Router;
use axum::extract::Request;
use axum::middleware;
use axum::middleware::Next;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use http::HeaderMap;
use http::Method;
use http::StatusCode;
use http::header::CACHE_CONTROL;
use http::header::CONTENT_SECURITY_POLICY;
use http::header::CONTENT_TYPE;
use http::header::HOST;
use http::header::ORIGIN;
use http::header::X_CONTENT_TYPE_OPTIONS;
use http::uri::Authority;

use crate::service::http::answer;

const PAGE: &str = include_str!("page.html");

/// All that the page may do: what is written in it, and ask where it came from.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page at `/`, and `door` below it.
pub(super) fn router(door: Router) -> Router {
    let page = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CACHE_CONTROL, "no-store"),
    ];
    let routes = Router::new().route("/", get(move || async move { (page, PAGE) })).merge(door);
    routes.layer(middleware::from_fn(|request: Request, next: Next| async move {
        match stranger(request.method(), request.headers()) {
            None => next.run(request).await,
            Some(problem) => refused(problem),
        }
    }))
}

fn refused(problem: &'static str) -> Response {
    let error = serde_json::json!({"error": problem, "code": "PERMISSION_DENIED"});
    answer::json(StatusCode::FORBIDDEN, &error).into_response()
}

/// Why a request is not this page's own.
fn stranger(method: &Method, headers: &HeaderMap) -> Option<&'static str> {
    let host = headers.get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let is_here = host.is_some_and(|host| {
        let name = host.host();
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        name.eq_ignore_ascii_case("localhost") || address.is_ok()
    });
    if !is_here {
        return Some("this page is opened by its address or as localhost, not by another name");
    }
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    // an address that is not loopback has no such header in browsers, over plain HTTP
    let origin = headers.get(ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
    let of_here = |origin: &str| {
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        authority.is_some_and(|authority| headers[HOST] == authority)
    };
    let is_own = matches!(site, None | Some(b"same-origin" | b"none")) && origin.is_none_or(of_here);
    let reads = matches!(*method, Method::GET | Method::HEAD);
    (!is_own && !reads).then_some("another page asks, and only this one may")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_itself_asks() {
        let asks = |method: Method, host: &str, site: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            if let Some(site) = site {
                headers.insert("sec-fetch-site", site.parse().unwrap());
            }
            stranger(&method, &headers).is_none()
        };
        for host in ["127.0.0.1:50080", "localhost:50080", "[::1]:1", "10.1.2.3", "LOCALHOST"] {
            assert!(asks(Method::POST, host, Some("same-origin")), "{host}");
            assert!(asks(Method::POST, host, None), "{host}: curl");
            assert!(asks(Method::GET, host, Some("cross-site")), "{host}: a link");
            for site in ["cross-site", "same-site", ""] {
                assert!(!asks(Method::POST, host, Some(site)), "{host} {site}");
            }
        }
        let from = |origin: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, "10.1.2.3:50080".parse().unwrap());
            headers.insert(ORIGIN, origin.parse().unwrap());
            stranger(&Method::POST, &headers).is_none()
        };
        assert!(from("http://10.1.2.3:50080") && from("https://10.1.2.3:50080"));
        assert!(!from("http://example.com") && !from("null") && !from("http://10.1.2.3"));
        for host in ["example.com", "127.0.0.1.example.com:50080", "localhost.example.com", ""] {
            assert!(!asks(Method::GET, host, None), "{host}");
        }
        assert!(stranger(&Method::GET, &HeaderMap::new()).is_some());
    }
}
