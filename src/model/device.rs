//! Where a model is computed, as people say it.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;
use serde::Deserialize;
use serde::Serialize;

/// A device by its name: "cpu", "cuda" or "cuda:N".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceName {
    /// Our own kernels.
    #[default]
    Cpu,
    /// The GPU of this index; the first where none is said.
    Cuda(Option<usize>),
}

impl DeviceName {
    /// The device of that name; fails where there is none.
    pub fn open(self) -> candle_core::Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(index) => Device::new_cuda(index.unwrap_or(0)),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(index)) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let index = name.strip_prefix("cuda:").and_then(|index| index.parse().ok());
        match (name, index) {
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(None)),
            (_, Some(index)) => Ok(Self::Cuda(Some(index))),
            _ => Err(format!("`{name}` is not cpu, cuda or cuda:N")),
        }
    }
}

impl TryFrom<String> for DeviceName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.to_string()
    }
}
