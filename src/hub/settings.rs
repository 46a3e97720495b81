//! What the variables of the Python library say, read once.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::hub::HubError;

const ENDPOINT: &str = "https://huggingface.co";
pub(super) const QUESTION_TIMEOUT: &str = "HF_HUB_ETAG_TIMEOUT";
pub(super) const DOWNLOAD_TIMEOUT: &str = "HF_HUB_DOWNLOAD_TIMEOUT";
/// Of both, in Python too.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the hub is, and where what it holds is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `HF_ENDPOINT`, without a slash at the end.
    pub endpoint: String,
    /// `HF_TOKEN`, or the file where `hf auth login` leaves it.
    pub token: Option<String>,
    /// `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// `HF_HUB_OFFLINE`: nothing is asked of anybody.
    pub is_offline: bool,
    /// `SSL_CERT_FILE`, or `REQUESTS_CA_BUNDLE`: certificates to trust in place of those that are built in.
    pub certificates: Option<PathBuf>,
    /// `HF_HUB_ETAG_TIMEOUT`: how long an answer to a question may take, what a branch is for example.
    pub question_timeout: Duration,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`: how long nothing may come of a file before the connection is given up.
    pub download_timeout: Duration,
}

/// Without the token.
impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, token, cache, is_offline, certificates, question_timeout, download_timeout } =
            self;
        let token = token.as_ref().map(|_| "secret");
        let timeouts = (question_timeout, download_timeout);
        write!(formatter, "{:?}", (endpoint, token, cache, is_offline, certificates, timeouts))
    }
}

impl Settings {
    /// Of this process.
    pub fn from_env() -> Result<Self, HubError> {
        Self::read(&|name| std::env::var_os(name))
    }

    /// An empty variable is an absent one.
    fn read(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| get(name).map(|value| value.to_string_lossy().trim().to_owned());
        let user = get("HOME").map(PathBuf::from);
        let path = |name: &str| {
            let path = PathBuf::from(get(name)?);
            match (path.strip_prefix("~"), &user) {
                (Ok(below), Some(user)) => Some(user.join(below)),
                _ => Some(path),
            }
        };
        let is_true = |name: &str| {
            text(name)
                .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
        };
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| user.as_ref().map(|user| user.join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| home.as_ref().map(|home| home.join("hub")));
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let authority =
            endpoint.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
        if authority.contains('@') {
            let problem = "HF_ENDPOINT has a name or a password in it, which errors would repeat: give the token in HF_TOKEN";
            return Err(HubError::Setting(problem.to_owned()));
        }
        if !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(HubError::Setting(format!(
                "HF_ENDPOINT is `{endpoint}`: expected a URL, for example {ENDPOINT}"
            )));
        }
        let token_file = path("HF_TOKEN_PATH").or_else(|| home.map(|home| home.join("token")));
        let in_file = || {
            let text = std::fs::read_to_string(token_file.as_ref()?).ok()?;
            Some(text.trim().to_owned())
                .filter(|token| !token.is_empty() && !is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN"))
        };
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(in_file);
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(HubError::Setting(
                "HF_TOKEN holds a blank, or what is no letter: copy the token again".to_owned(),
            ));
        }
        let cache = cache.ok_or_else(|| {
            HubError::Setting("there is no place for models of the hub: set HF_HOME, or HOME".to_owned())
        })?;
        // zero is the default, as there
        let timeout = |name: &str| match text(name).map(|value| (value.parse::<u32>(), value)) {
            None | Some((Ok(0), _)) => Ok(DEFAULT_TIMEOUT),
            Some((Ok(seconds), _)) => Ok(Duration::from_secs(seconds.into())),
            Some((Err(_), value)) => {
                Err(HubError::Setting(format!("{name} is `{value}`: expected whole seconds, for example 30")))
            }
        };
        // the second is asked for only where the first says nothing, as there
        let offline = if get("HF_HUB_OFFLINE").is_some() { "HF_HUB_OFFLINE" } else { "TRANSFORMERS_OFFLINE" };
        Ok(Self {
            endpoint,
            token,
            cache,
            is_offline: is_true(offline),
            certificates: path("SSL_CERT_FILE").or_else(|| path("REQUESTS_CA_BUNDLE")),
            question_timeout: timeout(QUESTION_TIMEOUT)?,
            download_timeout: timeout(DOWNLOAD_TIMEOUT)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, HubError> {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Settings::read(&find)
    }

    #[test]
    fn variables_are_read_as_python_reads_them() {
        let cache = |variables: &[(&str, &str)]| read(variables).unwrap().cache.display().to_string();
        assert_eq!(cache(&[("HOME", "/u")]), "/u/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/h")]), "/u/h/hub");
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]), "/c");
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "")]), "/h/hub");
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/c")]), "/c");
        assert!(read(&[]).is_err());

        let offline =
            |variables: &[(&str, &str)]| read(&[variables, &[("HOME", "/u")]].concat()).unwrap().is_offline;
        assert!(offline(&[("HF_HUB_OFFLINE", "1")]) && offline(&[("HF_HUB_OFFLINE", "true")]));
        assert!(offline(&[("TRANSFORMERS_OFFLINE", "yes")]));
        assert!(!offline(&[]) && !offline(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]));

        let endpoint =
            |value: &str| read(&[("HOME", "/u"), ("HF_ENDPOINT", value)]).map(|settings| settings.endpoint);
        assert_eq!(endpoint("").unwrap(), ENDPOINT);
        assert_eq!(endpoint("http://127.0.0.1:8/").unwrap(), "http://127.0.0.1:8");
        assert!(endpoint("hub.example").unwrap_err().to_string().contains("expected a URL"));
        let secret = endpoint("https://me:hidden@hub.example/path").unwrap_err().to_string();
        assert!(secret.contains("give the token in HF_TOKEN") && !secret.contains("hidden"), "{secret}");
        assert!(endpoint("https://hub.example/@path").is_ok());

        let timeouts = |variables: &[(&str, &str)]| {
            let settings = read(&[variables, &[("HOME", "/u")]].concat())?;
            Ok::<_, HubError>((settings.question_timeout.as_secs(), settings.download_timeout.as_secs()))
        };
        assert_eq!(timeouts(&[]).unwrap(), (10, 10));
        assert_eq!(timeouts(&[(QUESTION_TIMEOUT, "3"), (DOWNLOAD_TIMEOUT, "0")]).unwrap(), (3, 10));
        assert_eq!(timeouts(&[(DOWNLOAD_TIMEOUT, " 60")]).unwrap(), (10, 60));
        let refused = timeouts(&[(DOWNLOAD_TIMEOUT, "1.5")]).unwrap_err().to_string();
        assert!(refused.contains("HF_HUB_DOWNLOAD_TIMEOUT is `1.5`: expected whole seconds"), "{refused}");
    }

    #[test]
    fn a_token_comes_from_its_variable_or_its_file_and_is_never_shown() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_str().unwrap();
        std::fs::write(Path::new(path).join("token"), "hf_file\n").unwrap();
        let token = |variables: &[(&str, &str)]| {
            read(&[variables, &[("HF_HOME", path)]].concat()).map(|settings| settings.token)
        };
        assert_eq!(token(&[]).unwrap().as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_TOKEN", " hf_variable\n")]).unwrap().as_deref(), Some("hf_variable"));
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).unwrap(), None);
        assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere")]).unwrap(), None);
        assert!(token(&[("HF_TOKEN", "a\nb")]).is_err());
        let shown = format!("{:?}", read(&[("HF_HOME", path)]).unwrap());
        assert!(!shown.contains("hf_file") && shown.contains("secret"), "{shown}");
    }
}
