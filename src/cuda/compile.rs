//! From the text of kernels to what a card runs: NVRTC, once for each text, card and version of NVRTC, then a file.
//!
//! ```text
//! module ── digest of text, options, NVRTC, architecture ──▶ in memory? on disk, and whole? else compiled, and kept
//! ```
//!
//! NVRTC is asked for a cubin of the card's own architecture: from PTX the driver would compile once more at every
//! start (0.6 to 1.2 s seen, where a cubin is loaded in 0.2 ms). A file that is not what was written is compiled anew;
//! where no file can be written, this is said once, and kernels are compiled at every start.

#![expect(unsafe_code, reason = "NVRTC is a library of C")]

use std::collections::HashMap;
use std::ffi::CStr;
use std::ffi::CString;
use std::fmt;
use std::fmt::Debug;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Once;
use std::sync::PoisonError;

use cudarc::nvrtc::result as nvrtc;
use cudarc::nvrtc::sys;

use crate::driver::CudaError;
use crate::driver::Result;
use crate::modules::Module;

/// Where what takes time to make is kept: `REWARM_CACHE_DIR`, else `rewarm` in `XDG_CACHE_HOME`, else `~/.cache/rewarm`.
/// None if there is no home either.
pub fn cache_dir() -> Option<PathBuf> {
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    cache_dir_of(&named)
}

fn cache_dir_of(named: &dyn Fn(&'static str) -> Option<PathBuf>) -> Option<PathBuf> {
    // relative folders of XDG are to be ignored: https://specifications.freedesktop.org/basedir-spec
    let xdg = || named("XDG_CACHE_HOME").filter(|dir| dir.is_absolute());
    let of_user = || Some(xdg().or_else(|| named("HOME").map(|home| home.join(".cache")))?.join("rewarm"));
    named("REWARM_CACHE_DIR").or_else(of_user)
}

/// A folder for files by digest.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: Option<PathBuf>,
    told: Once,
}

impl Cache {
    pub(crate) fn new(dir: Option<PathBuf>) -> Self {
        Self { dir, told: Once::new() }
    }

    /// What was written under this name, if it is whole.
    pub(crate) fn read(&self, name: &str) -> Option<Vec<u8>> {
        let mut content = std::fs::read(self.dir.as_ref()?.join(name)).ok()?;
        let digest = content.split_off(content.len().checked_sub(blake3::OUT_LEN)?);
        (blake3::hash(&content).as_bytes()[..] == digest[..]).then_some(content)
    }

    /// Writes it, whole or not at all: several processes may do so at once.
    pub(crate) fn write(&self, name: &str, content: &[u8]) {
        let Some(dir) = &self.dir else { return };
        if let Err(error) = write(dir, name, content) {
            self.told.call_once(|| {
                tracing::warn!(
                    dir = %dir.display(),
                    %error,
                    "nothing can be kept: kernels are compiled and algorithms tried at every start (REWARM_CACHE_DIR names \
                     another folder)"
                );
            });
        }
    }
}

fn write(dir: &Path, name: &str, content: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(content)?;
    file.write_all(blake3::hash(content).as_bytes())?;
    file.persist(dir.join(name))?;
    Ok(())
}

/// Text and options to a cubin, or the compiler's words.
type Make = dyn Fn(&str, &[String]) -> std::result::Result<Vec<u8>, String> + Send + Sync;

/// Compiles modules for one kind of card.
pub(crate) struct Compiler {
    architecture: String,
    version: String,
    cache: Cache,
    make: Box<Make>,
    made: Mutex<HashMap<String, Arc<[u8]>>>,
}

impl Debug for Compiler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { architecture, version, cache, .. } = self;
        formatter
            .debug_struct("Compiler")
            .field("for", architecture)
            .field("by", version)
            .field("to", cache)
            .finish()
    }
}

impl Compiler {
    fn new(architecture: String, version: String, dir: Option<PathBuf>, make: Box<Make>) -> Self {
        Self { architecture, version, cache: Cache::new(dir), make, made: Mutex::default() }
    }

    /// Whether NVRTC is there.
    pub(crate) fn is_present() -> Result<()> {
        // SAFETY: it only opens libraries of these names.
        match unsafe { sys::is_culib_present() } {
            true => Ok(()),
            false => Err(CudaError::Missing(
                "libnvrtc.so.13 is missing, which compiles kernels: it is in the package nvidia-cuda-nvrtc of pip \
                 (nvidia/cu13/lib) and cuda-nvrtc-13-0 of CUDA's toolkit; LD_LIBRARY_PATH must name its folder when \
                 this program starts"
                    .to_owned(),
            )),
        }
    }

    /// By NVRTC, for cards of this capability.
    pub(crate) fn nvrtc(capability: (u32, u32), dir: Option<PathBuf>) -> Result<Self> {
        Self::is_present()?;
        open_builtins();
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two integers to write to.
        let version = unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result();
        version.map_err(|error| CudaError::Missing(format!("libnvrtc does not say its version: {error}")))?;
        Ok(Self::new(architecture(capability), format!("NVRTC {major}.{minor}"), dir, Box::new(cubin)))
    }

    /// Who compiles, for messages.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// The module as the card runs it.
    pub(crate) fn cubin(&self, module: &Module) -> Result<Arc<[u8]>> {
        let mut options = vec![format!("--gpu-architecture={}", self.architecture), "--std=c++17".to_owned()];
        options.extend(module.defines.iter().map(|define| format!("--define-macro={define}")));
        let mut hasher = blake3::Hasher::new();
        for part in [&module.source, &self.version].into_iter().chain(&options) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        let name = format!("{}-{}.cubin", module.name, &hasher.finalize().to_hex()[..32]);
        let made = || self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made().get(&name) {
            return Ok(known.clone());
        }
        // Not under the lock: several are compiled side by side.
        let cubin = match self.cache.read(&name) {
            Some(cubin) => cubin,
            None => {
                let start = std::time::Instant::now();
                let cubin = (self.make)(&module.source, &options)
                    .map_err(|log| CudaError::Compile { kernel: module.name.clone(), log })?;
                self.cache.write(&name, &cubin);
                let seconds = start.elapsed().as_secs_f64();
                tracing::info!(
                    module = module.name,
                    architecture = self.architecture,
                    seconds,
                    "compiled kernels"
                );
                cubin
            }
        };
        Ok(made().entry(name).or_insert(cubin.into()).clone())
    }
}

/// As NVRTC names it. From 9.0 on a card has instructions of its own, which only the name with an `a` allows.
fn architecture((major, minor): (u32, u32)) -> String {
    format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
}

/// NVRTC opens `libnvrtc-builtins` by its bare name when it first compiles. Where it was itself found by a path, that
/// fails, unless the library is open already.
fn open_builtins() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the version is asked for only so that libnvrtc is open; see `nvrtc`.
        unsafe { sys::nvrtcVersion(&mut 0, &mut 0) };
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
        let named = |path: &Path, start: &str| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(start))
        };
        let nvrtc = paths.into_iter().find(|path| named(path, "libnvrtc.so"));
        let Some(dir) = nvrtc.and_then(Path::parent) else { return };
        let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in files.filter(|path| named(path, "libnvrtc-builtins.so")) {
            // SAFETY: a library of NVRTC's own, beside it, which it would open itself.
            if let Ok(library) = unsafe { libloading::Library::new(&path) } {
                // It stays open for as long as NVRTC does.
                std::mem::forget(library);
                return;
            }
        }
    });
}

/// By NVRTC.
fn cubin(source: &str, options: &[String]) -> std::result::Result<Vec<u8>, String> {
    let source = CString::new(source).map_err(|_| "the text has a zero byte".to_owned())?;
    let failed = |what: &str, error: nvrtc::NvrtcError| format!("NVRTC cannot {what}: {error}");
    let program = Program(nvrtc::create_program(&source, None).map_err(|error| failed("begin", error))?);
    // SAFETY: the program is not destroyed before the end; options are read before the call returns.
    if let Err(error) = unsafe { nvrtc::compile_program(program.0, options) } {
        // SAFETY: the same.
        let log = unsafe { nvrtc::get_program_log(program.0) }.unwrap_or_default();
        let log: Vec<u8> = log.iter().map(|&c| c.cast_unsigned()).collect();
        let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
        return Err(format!("{error}\n{}", log.trim_end()));
    }
    let mut size = 0;
    // SAFETY: a number to write to; then as many bytes as it says.
    unsafe {
        sys::nvrtcGetCUBINSize(program.0, &mut size)
            .result()
            .map_err(|error| failed("say its size", error))?;
        let mut cubin = vec![0u8; size];
        sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast())
            .result()
            .map_err(|error| failed("give it", error))?;
        Ok(cubin)
    }
}

struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `create_program`, destroyed once. What it answers changes nothing.
        let _ = unsafe { nvrtc::destroy_program(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;

    use super::*;

    fn module(name: &str, source: &str) -> Module {
        Module { name: name.to_owned(), source: source.to_owned(), defines: Vec::new(), kernels: Vec::new() }
    }

    /// What it is asked for, as a "cubin"; fails for text that says so.
    fn fake(architecture: &str, version: &str, dir: &Path) -> (Compiler, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let make = {
            let count = count.clone();
            move |source: &str, options: &[String]| {
                count.fetch_add(1, Ordering::Relaxed);
                if source.contains("error") {
                    return Err("line 1: that is an error".to_owned());
                }
                Ok(format!("{source} {options:?}").into_bytes())
            }
        };
        let dir = Some(dir.to_owned());
        (Compiler::new(architecture.to_owned(), version.to_owned(), dir, Box::new(make)), count)
    }

    #[test]
    fn a_module_is_compiled_once_for_each_text_version_and_architecture() {
        let dir = tempfile::tempdir().unwrap();
        let rows = module("rows", "text");
        let defined = Module { defines: vec!["HEAD=64".to_owned()], ..rows.clone() };
        let compile = |architecture, version, module: &Module| {
            let (compiler, count) = fake(architecture, version, dir.path());
            let cubins = [compiler.cubin(module).unwrap(), compiler.cubin(module).unwrap()];
            assert_eq!(cubins[0], cubins[1]);
            (count.load(Ordering::Relaxed), String::from_utf8(cubins[0].to_vec()).unwrap())
        };
        let (count, text) = compile("sm_90a", "13.0", &rows);
        assert_eq!((count, &*text), (1, r#"text ["--gpu-architecture=sm_90a", "--std=c++17"]"#));
        assert_eq!(compile("sm_90a", "13.0", &rows), (0, text), "a second start");
        assert!(compile("sm_90a", "13.0", &defined).1.contains("--define-macro=HEAD=64"));
        for (architecture, version, module, expected) in [
            ("sm_80", "13.0", &rows, 1),
            ("sm_90a", "13.1", &rows, 1),
            ("sm_90a", "13.0", &module("rows", "other text"), 1),
            ("sm_90a", "13.0", &defined, 0),
        ] {
            assert_eq!(compile(architecture, version, module).0, expected, "{architecture} {version}");
        }
    }

    #[test]
    fn a_damaged_file_is_compiled_anew() {
        let dir = tempfile::tempdir().unwrap();
        let rows = module("rows", "text");
        let whole = fake("sm_80", "13.0", dir.path()).0.cubin(&rows).unwrap();
        let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let file = std::fs::read(&path).unwrap();
        let mut turned = file.clone();
        turned[3] ^= 1;
        for damaged in [&file[..file.len() - 1], &file[..5], &[], &turned] {
            std::fs::write(&path, damaged).unwrap();
            let (compiler, count) = fake("sm_80", "13.0", dir.path());
            assert_eq!((compiler.cubin(&rows).unwrap(), count.load(Ordering::Relaxed)), (whole.clone(), 1));
            assert_eq!(std::fs::read(&path).unwrap(), file, "mended");
        }
    }

    #[test]
    fn where_nothing_can_be_written_it_is_kept_in_memory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // A folder cannot be made where a file is, whoever asks.
        let (compiler, count) = fake("sm_80", "13.0", &file.path().join("folder"));
        let rows = module("rows", "text");
        assert_eq!(compiler.cubin(&rows).unwrap(), compiler.cubin(&rows).unwrap());
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_does_not_compile_says_why_and_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (compiler, count) = fake("sm_80", "13.0", dir.path());
        for _ in 0..2 {
            let error = compiler.cubin(&module("rows", "an error")).unwrap_err();
            assert_eq!(error.to_string(), "kernel rows: line 1: that is an error");
        }
        assert_eq!((count.load(Ordering::Relaxed), std::fs::read_dir(dir.path()).unwrap().count()), (2, 0));
    }

    #[test]
    fn the_cache_is_where_its_variables_say() {
        type Variables = &'static [(&'static str, &'static str)];
        let cases: [(Variables, Option<&str>); 5] = [
            (&[("REWARM_CACHE_DIR", "here"), ("HOME", "/h")], Some("here")),
            (&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], Some("/x/rewarm")),
            (&[("XDG_CACHE_HOME", "x"), ("HOME", "/h")], Some("/h/.cache/rewarm")),
            (&[("HOME", "/h")], Some("/h/.cache/rewarm")),
            (&[], None),
        ];
        for (variables, expected) in cases {
            let named =
                |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value));
            assert_eq!(cache_dir_of(&named), expected.map(PathBuf::from), "{variables:?}");
        }
    }

    #[test]
    fn an_architecture_is_named_as_its_compiler_does() {
        let names = [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)].map(architecture);
        assert_eq!(names, ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"]);
    }

    #[test]
    fn without_nvrtc_that_is_said_and_who_has_it() {
        match Compiler::nvrtc((9, 0), None) {
            Ok(compiler) => eprintln!("skipped: {} is there", compiler.version()),
            Err(error) => {
                let error = error.to_string();
                let words = ["libnvrtc.so.13 is missing", "nvidia-cuda-nvrtc", "LD_LIBRARY_PATH"];
                assert!(words.iter().all(|word| error.contains(word)), "{error}");
            }
        }
    }

    /// All modules: `tests/nvrtc.rs`.
    #[test]
    fn nvrtc_compiles_for_every_architecture() {
        if std::env::var_os("REWARM_NVRTC").is_none() {
            eprintln!("skipped: NVRTC is brought by .ci/kernels");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for capability in [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)] {
            let compiler = Compiler::nvrtc(capability, Some(dir.path().to_owned())).unwrap();
            let one = module("one", "extern \"C\" __global__ void one(float* x) { *x = 1; }");
            for module in [one, crate::modules::module_of("add_b")] {
                let cubin = compiler.cubin(&module).unwrap();
                assert!(cubin.starts_with(b"\x7fELF"), "{} for {capability:?}", module.name);
            }
            let error = compiler.cubin(&module("broken", "__global__ void f() { return 1 }")).unwrap_err();
            assert!(error.to_string().contains("error:"), "{error}");
        }
    }
}
