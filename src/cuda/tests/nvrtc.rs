//! The real compiler on every module: no card is needed, but NVRTC is. `.ci/kernels` brings it and runs this.

use std::ffi::CStr;
use std::ffi::CString;
use std::ffi::c_char;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use cudarc::nvrtc::sys;
use rewarm_cuda::modules;
use rewarm_cuda::modules::Module;

/// Of each generation one: A100, Ada, Hopper, and both Blackwells.
const ARCHITECTURES: [&str; 5] = ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"];
/// These compile all sizes of heads in bf16, Hopper in f16 as well; the others the commonest: it takes a minute of two cores
/// so.
const WHOLE: [&str; 2] = ["sm_80", "sm_90a"];
const COMMON: [&str; 4] = ["attend_b_64", "attend_b_128", "attend_b_128x", "attend_h_128"];
/// What a block has on Ada and on the smaller Blackwell.
const MOST_SHARED: usize = 99 << 10;
/// Two blocks at a time: of rows' kernels, and of attention.
const MOST_REGISTERS: [usize; 2] = [128, 255];
/// Wider heads may spill; none does as this is written.
const MUST_NOT_SPILL: usize = 128;

#[derive(Debug)]
struct Use {
    registers: usize,
    spilled: usize,
    shared: usize,
}

#[test]
fn every_module_compiles_within_bounds() {
    if std::env::var_os("REWARM_NVRTC").is_none() {
        eprintln!("skipped: NVRTC is brought by .ci/kernels");
        return;
    }
    let modules = modules::all();
    let jobs: Vec<(&str, &Module)> = ARCHITECTURES
        .iter()
        .flat_map(|architecture| modules.iter().map(move |module| (*architecture, module)))
        .filter(|(architecture, module)| {
            let name = module.name.as_str();
            let is_wanted =
                WHOLE.contains(architecture) && (!name.starts_with("attend_h_") || *architecture == "sm_90a");
            is_wanted || !name.starts_with("attend_") || COMMON.contains(&name)
        })
        .collect();
    let (next, lines, problems) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some((architecture, module)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    for (kernel, found) in compile(architecture, module) {
                        let line = format!("{architecture:8} {kernel:16} {found:?}");
                        if let Some(problem) = beyond(&kernel, &found) {
                            problems.lock().expect("no panic").push(format!("{line}: {problem}"));
                        }
                        lines.lock().expect("no panic").push(line);
                    }
                }
            });
        }
    });
    let mut lines = lines.into_inner().expect("no panic");
    lines.sort();
    println!("{}", lines.join("\n"));
    let problems = problems.into_inner().expect("no panic");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

fn beyond(kernel: &str, found: &Use) -> Option<String> {
    let is_attention = kernel.starts_with("attend");
    let size = kernel.trim_end_matches('x').rsplit('_').next().and_then(|size| size.parse().ok());
    let most = MOST_REGISTERS[usize::from(is_attention)];
    let shared = found.shared + modules::shared_bytes(kernel) as usize;
    if found.registers > most {
        Some(format!("more than {most} registers"))
    } else if found.spilled > 0 && size.is_none_or(|size: usize| size <= MUST_NOT_SPILL) {
        Some("registers are spilled".into())
    } else if shared > MOST_SHARED {
        Some(format!("{shared} bytes of shared memory, more than {MOST_SHARED}"))
    } else {
        None
    }
}

/// What the assembler says of each kernel of a module.
#[expect(unsafe_code, reason = "NVRTC is a library of C")]
fn compile(architecture: &str, module: &Module) -> Vec<(String, Use)> {
    let owned = |text: &str| CString::new(text).expect("no zero in it");
    let (source, name) = (owned(&module.source), owned(&module.name));
    let mut options =
        vec![format!("--gpu-architecture={architecture}"), "--std=c++17".into(), "--ptxas-options=-v".into()];
    options.extend(module.defines.iter().map(|define| format!("--define-macro={define}")));
    let options: Vec<CString> = options.iter().map(|option| owned(option)).collect();
    let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    let mut program = std::ptr::null_mut();
    // SAFETY: every string ends in a zero and outlives its call; the log has the bytes that it asks for.
    let (is_done, log) = unsafe {
        let made = sys::nvrtcCreateProgram(
            &mut program,
            source.as_ptr(),
            name.as_ptr(),
            0,
            std::ptr::null(),
            std::ptr::null(),
        );
        assert_eq!(made, sys::nvrtcResult::NVRTC_SUCCESS);
        let done = sys::nvrtcCompileProgram(program, pointers.len() as i32, pointers.as_ptr());
        let mut bytes = 0;
        assert_eq!(sys::nvrtcGetProgramLogSize(program, &mut bytes), sys::nvrtcResult::NVRTC_SUCCESS);
        let mut log = vec![0_u8; bytes + 1];
        assert_eq!(
            sys::nvrtcGetProgramLog(program, log.as_mut_ptr().cast()),
            sys::nvrtcResult::NVRTC_SUCCESS
        );
        sys::nvrtcDestroyProgram(&mut program);
        let log = CStr::from_bytes_until_nul(&log).expect("it ends").to_string_lossy().into_owned();
        (done == sys::nvrtcResult::NVRTC_SUCCESS, log)
    };
    assert!(is_done, "{} for {architecture}: {log}", module.name);
    let found = read(&log);
    let mut names: Vec<&str> = found.iter().map(|(kernel, _)| kernel.as_str()).collect();
    let mut expected: Vec<&str> = module.kernels.iter().map(String::as_str).collect();
    names.sort_unstable();
    expected.sort_unstable();
    assert_eq!(names, expected, "the kernels of {} for {architecture}: {log}", module.name);
    found
}

/// ```text
/// ptxas info    : Compiling entry function 'add_b' for 'sm_90a'
/// ptxas info    : Function properties for add_b
///     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 32 registers, used 0 barriers, 32 bytes smem
/// ```
fn read(log: &str) -> Vec<(String, Use)> {
    let before = |line: &str, what: &str| -> usize {
        let number = line
            .split(what)
            .next()
            .and_then(|before| before.rsplit([' ', ',']).find(|part| !part.is_empty()));
        if line.contains(what) { number.and_then(|number| number.parse().ok()).expect("a number") } else { 0 }
    };
    let mut all: Vec<(String, Use)> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default();
            all.push((name.into(), Use { registers: 0, spilled: 0, shared: 0 }));
        } else if let Some((_, found)) = all.last_mut() {
            if line.contains("spill") {
                found.spilled = before(line, " bytes spill stores") + before(line, " bytes spill loads");
            } else if line.contains(" registers") {
                found.registers = before(line, " registers");
                found.shared = before(line, " bytes smem");
            }
        }
    }
    all
}
