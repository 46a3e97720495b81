//! Where a model is computed: as people say it, and what that means on this machine.
//!
//! ```text
//! "auto" | "cpu" | "cuda" | "cuda:1" | ["cuda:0", "cuda:1"]  ── resolve, once ──▶  devices, and why these
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;

use rewarm_cuda::device::Device as Opened;
use rewarm_cuda::driver::Card;
use rewarm_cuda::driver::CudaError;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;

/// Cards of a lower compute capability have no bfloat16 in their tensor cores.
const LEAST_CAPABILITY: (u32, u32) = (8, 0);
/// More names in one list are a mistake.
const MAX_CARDS: usize = 64;

/// What a model shall be computed on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "String")]
pub enum DeviceName {
    /// The first card that can, else the CPU.
    #[default]
    Auto,
    /// Our kernels for CPUs.
    Cpu,
    /// The cards of these indices: at least one, none twice.
    Cuda(Vec<usize>),
}

impl DeviceName {
    /// The devices that it means here; "auto" means something everywhere.
    pub fn resolve(&self, cards: &dyn Cards) -> Result<Resolved, CudaError> {
        match self {
            Self::Cpu => Ok(Resolved { devices: vec![Device::Cpu], why: "as configured".to_owned() }),
            Self::Auto => first_card(cards),
            Self::Cuda(indices) => {
                let all = cards.list()?;
                let open = |&index: &usize| {
                    let card = card(&all, index)?;
                    cards.open(index)?; // or what is missing
                    Ok(Device::Card(card))
                };
                let devices: Result<Vec<Device>, CudaError> = indices.iter().map(open).collect();
                Ok(Resolved { devices: devices?, why: "as configured".to_owned() })
            }
        }
    }

    /// The same names, written as one.
    fn of_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut indices = Vec::new();
        let names: Vec<&str> = names.map(str::trim).collect();
        for name in &names {
            let index = match (*name, name.strip_prefix("cuda:")) {
                ("auto", _) if names.len() == 1 => return Ok(Self::Auto),
                ("cpu", _) if names.len() == 1 => return Ok(Self::Cpu),
                ("auto" | "cpu", _) => return Err(format!("`{name}` does not go with other devices")),
                ("cuda", _) => 0,
                (_, Some(index)) => {
                    let is_number = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
                    let index = index.parse().ok().filter(|_| is_number);
                    index.ok_or_else(|| format!("`{name}` is not cuda:N, N from 0"))?
                }
                _ => return Err(format!("`{name}` is not auto, cpu, cuda or cuda:N")),
            };
            if indices.contains(&index) {
                return Err(format!("cuda:{index} is named twice"));
            }
            indices.push(index);
        }
        match indices.len() {
            0 => Err("no device is named".to_owned()),
            1..=MAX_CARDS => Ok(Self::Cuda(indices)),
            count => Err(format!("{count} devices are named, the limit is {MAX_CARDS}")),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(indices) => {
                let names: Vec<String> = indices.iter().map(|index| format!("cuda:{index}")).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

/// Several are separated by commas.
impl FromStr for DeviceName {
    type Err = String;

    fn from_str(names: &str) -> Result<Self, String> {
        Self::of_names(names.split(','))
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.to_string()
    }
}

/// A string, or a list of strings.
impl<'de> Deserialize<'de> for DeviceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> serde::de::Visitor<'de> for Names {
            type Value = DeviceName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a device, or a list of cards")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<DeviceName, E> {
                name.parse().map_err(E::custom)
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<DeviceName, A::Error> {
                let mut names: Vec<String> = Vec::new();
                while let Some(name) = list.next_element()? {
                    names.push(name);
                }
                DeviceName::of_names(names.iter().map(String::as_str)).map_err(serde::de::Error::custom)
            }
        }
        deserializer.deserialize_any(Names)
    }
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// This machine's CPUs, together.
    Cpu,
    /// A GPU.
    Card(Card),
}

impl Device {
    /// "cpu" or "cuda:N".
    pub fn name(&self) -> String {
        match self {
            Self::Cpu => "cpu".to_owned(),
            Self::Card(card) => name_of(card),
        }
    }

    /// If it is one.
    pub fn card(&self) -> Option<&Card> {
        match self {
            Self::Cpu => None,
            Self::Card(card) => Some(card),
        }
    }

    /// What its rewards are computed by, wherever that is: "cpu" or "cuda".
    pub fn arithmetic(&self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Card(_) => "cuda",
        }
    }
}

/// "cpu", or "cuda:0 (NVIDIA H100 80GB HBM3, 85.0 GB)".
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Card(card) => {
                let Card { index, name, memory, .. } = card;
                write!(f, "cuda:{index} ({name}, {:.1} GB)", *memory as f64 / 1e9)
            }
        }
    }
}

/// What a [`DeviceName`] means on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// At least one; several are all cards.
    pub devices: Vec<Device>,
    /// In words.
    pub why: String,
}

/// "cpu: no GPU can be used, …"
impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let devices: Vec<String> = self.devices.iter().map(Device::to_string).collect();
        write!(f, "{}: {}", devices.join(", "), self.why)
    }
}

/// Where a variant is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// At least one; several are all cards.
    pub devices: Vec<Device>,
    /// What is on each of several.
    pub parts: Parts,
    /// Bytes of each that were left when it was loaded, where somebody tells.
    pub left: Vec<Option<u64>>,
}

/// What is on each of several devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// All of the variant: each serves for itself.
    Copies,
    /// Some of the members.
    Members,
}

impl Placement {
    /// On the CPU.
    pub fn cpu() -> Self {
        Self { devices: vec![Device::Cpu], parts: Parts::Copies, left: vec![None] }
    }
}

/// "cpu", "cuda:0", "cuda:0,cuda:1".
impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.devices.iter().map(Device::name).collect::<Vec<_>>().join(","))
    }
}

/// The cards of a machine. A trait, so that tests can have some that are played.
pub trait Cards: Send + Sync {
    /// Those that this process sees; fails where a driver or a library is missing.
    fn list(&self) -> Result<Vec<Card>, CudaError>;
    /// One of them, to work with: the same each time.
    fn open(&self, index: usize) -> Result<Arc<Opened>, CudaError>;
}

/// The cards of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Here;

impl Cards for Here {
    fn list(&self) -> Result<Vec<Card>, CudaError> {
        static CARDS: OnceLock<Result<Vec<Card>, CudaError>> = OnceLock::new();
        CARDS.get_or_init(rewarm_cuda::real::cards).clone()
    }

    fn open(&self, index: usize) -> Result<Arc<Opened>, CudaError> {
        static OPEN: Mutex<BTreeMap<usize, Arc<Opened>>> = Mutex::new(BTreeMap::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = open.get(&index) {
            return Ok(opened.clone());
        }
        let opened = Arc::new(Opened::new(rewarm_cuda::real::open(index)?));
        open.insert(index, opened.clone());
        Ok(opened)
    }
}

fn name_of(card: &Card) -> String {
    format!("cuda:{}", card.index)
}

/// "cuda:0 is a Tesla T4 of compute capability 7.5"
fn described(card: &Card) -> String {
    let (major, minor) = card.compute_capability;
    format!("{} is a {} of compute capability {major}.{minor}", name_of(card), card.name)
}

fn is_supported(card: &Card) -> bool {
    card.compute_capability >= LEAST_CAPABILITY
}

const TOO_OLD: &str = "kernels need 8.0 or higher (Ampere and later)";

/// A card that is there and does not do what it should is an error: rewards of a CPU have another fingerprint.
fn first_card(cards: &dyn Cards) -> Result<Resolved, CudaError> {
    let on_cpu = |why: String| Ok(Resolved { devices: vec![Device::Cpu], why });
    let all = match cards.list() {
        Ok(all) => all,
        Err(error) => return on_cpu(format!("no GPU can be used, {error}")),
    };
    let Some(card) = all.iter().find(|card| is_supported(card)) else {
        if all.is_empty() {
            return on_cpu("the driver shows no GPU".to_owned());
        }
        let found: Vec<String> = all.iter().map(described).collect();
        return on_cpu(format!("{}: {TOO_OLD}", found.join(", ")));
    };
    let mut why = described(card);
    match cards.open(card.index) {
        Ok(_) => {}
        Err(error @ (CudaError::Missing(_) | CudaError::Unsupported(_))) => {
            return on_cpu(format!("{why}, and cannot be used: {error}"));
        }
        Err(error) => return Err(error),
    }
    if all.len() > 1 {
        why += &format!(", the first that can be used of {} (name several in a list)", all.len());
    }
    Ok(Resolved { devices: vec![Device::Card(card.clone())], why })
}

fn card(all: &[Card], index: usize) -> Result<Card, CudaError> {
    let Some(card) = all.iter().find(|card| card.index == index) else {
        let there: Vec<String> =
            all.iter().map(|card| format!("{} ({})", name_of(card), card.name)).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        return Err(CudaError::Unsupported(format!(
            "there is no cuda:{index}: this process sees {there}. CUDA_VISIBLE_DEVICES, or the container's devices \
             (docker run --gpus), may hide others"
        )));
    };
    match is_supported(card) {
        true => Ok(card.clone()),
        false => Err(CudaError::Unsupported(format!("{}: {TOO_OLD}", described(card)))),
    }
}

#[cfg(test)]
mod tests {
    use rewarm_cuda::driver::Launch;
    use rewarm_cuda::played::Kernels;
    use rewarm_cuda::played::Play;
    use rewarm_cuda::played::Played;

    use super::*;

    /// A machine with these cards, or without a driver.
    struct Machine {
        cards: Option<Vec<Card>>,
        /// Why none can be opened.
        problem: Option<CudaError>,
    }

    impl Cards for Machine {
        fn list(&self) -> Result<Vec<Card>, CudaError> {
            self.cards.clone().ok_or_else(|| CudaError::Missing("libcuda.so.1 is not there".to_owned()))
        }

        fn open(&self, _: usize) -> Result<Arc<Opened>, CudaError> {
            struct Idle;
            impl Kernels for Idle {
                fn prepare(&self, _: &str) -> Result<(), CudaError> {
                    Ok(())
                }
                fn launch(&self, _: &Launch<'_>) -> Result<(), String> {
                    Ok(())
                }
            }
            match &self.problem {
                Some(problem) => Err(problem.clone()),
                None => Ok(Arc::new(Opened::new(Played::new(Play::new(Arc::new(Idle)))))),
            }
        }
    }

    fn machine(cards: Option<Vec<Card>>) -> Machine {
        Machine { cards, problem: None }
    }

    fn card(index: usize, name: &str, compute_capability: (u32, u32)) -> Card {
        Card {
            index,
            name: name.to_owned(),
            compute_capability,
            memory: 80_000_000_000,
            multiprocessors: 132,
            driver: 13000,
            cublaslt: 130_100,
        }
    }

    #[test]
    fn a_name_is_read_as_it_is_written() {
        let cuda = |indices: &[usize]| Ok(DeviceName::Cuda(indices.to_vec()));
        let cases = [
            ("auto", Ok(DeviceName::Auto)),
            ("cpu", Ok(DeviceName::Cpu)),
            ("cuda", cuda(&[0])),
            ("cuda:0", cuda(&[0])),
            ("cuda:1, cuda:0", cuda(&[1, 0])),
            ("gpu", Err("`gpu` is not auto, cpu, cuda or cuda:N")),
            ("", Err("`` is not auto, cpu, cuda or cuda:N")),
            ("cuda:", Err("`cuda:` is not cuda:N, N from 0")),
            ("cuda:+1", Err("`cuda:+1` is not cuda:N, N from 0")),
            ("cuda:99999999999999999999", Err("`cuda:99999999999999999999` is not cuda:N, N from 0")),
            ("cuda:1,cpu", Err("`cpu` does not go with other devices")),
            ("auto,cuda:1", Err("`auto` does not go with other devices")),
            ("cuda,cuda:0", Err("cuda:0 is named twice")),
        ];
        for (text, expected) in cases {
            let read = text.parse::<DeviceName>();
            assert_eq!(read, expected.map_err(str::to_owned), "{text}");
            let Ok(name) = read else { continue };
            assert_eq!(name.to_string().parse(), Ok(name.clone()));
            let json = serde_json::to_string(&name).unwrap();
            assert_eq!(serde_json::from_str::<DeviceName>(&json).unwrap(), name, "{json}");
        }
        let list = |text: &str| serde_json::from_str::<DeviceName>(text).map_err(|error| error.to_string());
        assert_eq!(list(r#"["cuda:0", "cuda:3"]"#), Ok(DeviceName::Cuda(vec![0, 3])));
        assert_eq!(list(r#"["auto"]"#), Ok(DeviceName::Auto));
        assert!(list("[]").is_err_and(|error| error.contains("no device is named")));
        assert!(list("[1]").is_err() && list("1").is_err() && list(r#"["cuda:0", "cpu"]"#).is_err());
    }

    #[test]
    fn auto_is_the_first_card_that_can_be_used_or_the_cpu_and_says_why() {
        let old = card(0, "Tesla T4", (7, 5));
        let (new, newer) = (card(1, "A100", (8, 0)), card(2, "H100", (9, 0)));
        struct Case {
            cards: Option<Vec<Card>>,
            device: Device,
            why: &'static [&'static str],
        }
        let cases = [
            Case { cards: None, device: Device::Cpu, why: &["no GPU", "libcuda.so.1"] },
            Case { cards: Some(vec![]), device: Device::Cpu, why: &["shows no GPU"] },
            Case { cards: Some(vec![old.clone()]), device: Device::Cpu, why: &["Tesla T4", "7.5", "8.0"] },
            Case {
                cards: Some(vec![old.clone(), new.clone(), newer]),
                device: Device::Card(new.clone()),
                why: &["cuda:1", "A100", "8.0", "of 3"],
            },
        ];
        for Case { cards, device, why } in cases {
            let resolved = DeviceName::Auto.resolve(&machine(cards)).unwrap();
            assert_eq!(resolved.devices, [device]);
            assert!(why.iter().all(|word| resolved.why.contains(word)), "{}", resolved.why);
        }

        let with = |problem| Machine { cards: Some(vec![card(0, "H100", (9, 0))]), problem: Some(problem) };
        let lacking = with(CudaError::Missing("libcublasLt.so.13 is not there".to_owned()));
        let resolved = DeviceName::Auto.resolve(&lacking).unwrap();
        assert_eq!(resolved.devices, [Device::Cpu]);
        assert!(resolved.why.contains("H100") && resolved.why.contains("libcublasLt"), "{}", resolved.why);
        assert!(DeviceName::Cuda(vec![0]).resolve(&lacking).is_err());
        let fault = CudaError::Fault { card: "H100".to_owned(), problem: "error 700".to_owned() };
        assert!(DeviceName::Auto.resolve(&with(fault)).is_err(), "never in silence");
    }

    #[test]
    fn a_card_that_is_not_there_or_too_old_is_an_error_that_says_what_is() {
        let machine = machine(Some(vec![
            card(0, "Tesla T4", (7, 5)),
            card(1, "A100", (8, 0)),
            card(2, "H100", (9, 0)),
        ]));
        let resolve = |name: &str| name.parse::<DeviceName>().unwrap().resolve(&machine);
        let names = |resolved: Resolved| resolved.devices.iter().map(Device::name).collect::<Vec<_>>();
        assert_eq!(resolve("cuda:2,cuda:1").map(names).unwrap(), ["cuda:2", "cuda:1"]);
        assert_eq!(resolve("cpu").map(names).unwrap(), ["cpu"]);
        let too_old = resolve("cuda").unwrap_err().to_string();
        assert!(too_old.contains("cuda:0 is a Tesla T4 of compute capability 7.5"), "{too_old}");
        let absent = resolve("cuda:1,cuda:7").unwrap_err().to_string();
        assert!(absent.contains("there is no cuda:7") && absent.contains("cuda:1 (A100)"), "{absent}");
        let missing = DeviceName::Cuda(vec![0])
            .resolve(&Machine { cards: None, problem: None })
            .unwrap_err()
            .to_string();
        assert!(missing.contains("libcuda.so.1 is not there"), "{missing}");
    }
}
