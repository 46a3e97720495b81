//! Which text a kernel is compiled from. Kernels that are used together are compiled together; of attention each size of
//! heads is a module of its own, compiled when a model asks for it.

/// On a card in place of `play/play.hpp`.
const ASM: &str = include_str!("kernels/asm.cu");
const NUMBERS: &str = include_str!("kernels/numbers.cu");
const ROWS: &str = include_str!("kernels/rows.cu");
const NORMS: &str = include_str!("kernels/norms.cu");
const PRODUCTS: &str = include_str!("kernels/products.cu");
const ATTEND: &str = include_str!("kernels/attend.cu");
const ATTEND_MMA: &str = include_str!("kernels/attend_mma.cu");

/// Head sizes that attention on tensor cores is compiled for; a model's heads take the next one.
const SIZES: [u32; 7] = [32, 64, 96, 128, 160, 192, 256];

/// Threads of a block of every kernel but attention's.
pub const THREADS: u32 = 256;
/// Threads of a block of attention.
pub const ATTEND_THREADS: u32 = 128;

/// Runs of a norm up to this width are a warp's, eight to a block; a block has one that is wider.
pub const WARP_RUN: usize = 1024;

/// What is compiled together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// For messages.
    pub name: String,
    /// CUDA C++, all of it.
    pub source: String,
    /// `-D` of the compiler.
    pub defines: Vec<String>,
    /// All that are in it.
    pub kernels: Vec<String>,
}

/// What a kernel is compiled from.
///
/// # Panics
///
/// Where no module has such a kernel.
pub fn module_of(kernel: &str) -> Module {
    let module = all().into_iter().find(|module| module.kernels.iter().any(|name| name == kernel));
    module.unwrap_or_else(|| panic!("no module has a kernel {kernel:?}"))
}

/// Bytes of dynamic shared memory that a block of a kernel takes.
pub fn shared_bytes(kernel: &str) -> u32 {
    match kernel {
        // keys or values [64, 257], queries [16, 256], weights [16, 64], rows of the keys [64]
        "attend_f" | "attend_b" | "attend_h" => 4 * (64 * 257 + 16 * 256 + 16 * 64 + 64),
        _ => match size_of(kernel) {
            // tiles of keys and values, and where registers do not hold them of queries: [64, size] of two bytes each
            Some(size) if size <= 128 => 2 * 64 * 2 * size,
            Some(size) => 3 * 64 * 2 * size,
            None => 0,
        },
    }
}

/// The head size in the name of attention on tensor cores.
fn size_of(kernel: &str) -> Option<u32> {
    let size = kernel.strip_prefix("attend_b_").or_else(|| kernel.strip_prefix("attend_h_"))?;
    size.trim_end_matches('x').parse().ok()
}

/// Every module.
pub fn all() -> Vec<Module> {
    let named = |stem: &str, endings: &[&str]| -> Vec<String> {
        endings.iter().map(|ending| format!("{stem}_{ending}")).collect()
    };
    let each = |stems: &[&str], endings: &[&str]| {
        stems.iter().flat_map(|stem| named(stem, endings)).collect::<Vec<_>>()
    };
    let numbers = ["b", "h", "f"];
    let norms = ["fb", "fh", "ff", "bb", "hh"];
    let mut modules = vec![
        module("rows", ROWS, &[], {
            let mut kernels =
                each(&["embed", "rows_of", "add", "scale", "gather", "mean", "neighbours"], &numbers);
            kernels.extend(named("convert", &["fb", "fh", "bf", "hf", "bb", "hh", "ff", "bh", "hb"]));
            kernels
        }),
        module("norms", NORMS, &[], {
            let mut kernels = each(&["rms_norm", "layer_norm"], &norms);
            kernels.extend(each(&["rotary", "norm_rotary"], &numbers));
            kernels
        }),
        module("products", PRODUCTS, &[], {
            let mut kernels = each(&["activate", "gate"], &numbers);
            kernels.push("product_f".into());
            kernels
        }),
    ];
    modules.push(module("attend", ATTEND, &["PLAIN"], named("attend", &numbers)));
    let on_tensor_cores = [ATTEND, ATTEND_MMA].concat();
    for size in SIZES {
        for (letter, number) in [("b", "bf16"), ("h", "f16")] {
            for (ending, extras) in [("", 0), ("x", 1)] {
                let name = format!("attend_{letter}_{size}{ending}");
                let defines = [
                    format!("NUMBER={number}"),
                    format!("LETTER={letter}"),
                    format!("SIZE={size}"),
                    format!("EXTRAS={extras}"),
                ];
                let defines: Vec<&str> = defines.iter().map(String::as_str).collect();
                modules.push(module(&name, &on_tensor_cores, &defines, vec![name.clone()]));
            }
        }
    }
    modules
}

fn module(name: &str, source: &str, defines: &[&str], kernels: Vec<String>) -> Module {
    Module {
        name: name.into(),
        source: [ASM, NUMBERS, source].concat(),
        defines: defines.iter().map(ToString::to_string).collect(),
        kernels,
    }
}

impl Module {
    /// What a C++ compiler makes of it a library that plays its kernels.
    #[cfg(feature = "play")]
    pub(crate) fn played(&self) -> String {
        let kernels = self.source.strip_prefix(ASM).expect("each module begins with it");
        [include_str!("play/play.hpp"), "\n#line 1 \"kernels\"\n", kernels].concat()
    }
}
