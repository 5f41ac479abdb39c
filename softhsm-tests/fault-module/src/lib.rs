//! A PKCS #11 module for tests: it passes every call on to a real module, and does what a file says
//! between. Faults can be put on a server that runs, and taken off again.
//!
//! [`Faults::REAL`] names the real module, [`Faults::CONTROL`] the file. The file is looked at before
//! each call; when it has changed, every rule begins anew. One rule a line, `#` begins a comment:
//!
//! ```text
//! C_UnwrapKey return=0x30 after=100 times=1
//! C_Login     return=0xa4
//! *           delay_ms=5000
//! C_Encrypt   garble=flip times=1
//! C_GenerateKeyPair return=0x70 mechanism=0x1040
//! log
//! ```
//!
//! | word | |
//! |---|---|
//! | `C_…` or `*` | the function, or all of them |
//! | `mechanism=N` | only calls with this mechanism, of functions that take one |
//! | `after=N` | so many such calls are let pass first |
//! | `times=N` | then so many are met; without it all |
//! | `return=N` | the call is not made, the caller is told this code |
//! | `answer=N` | the call is made, and the caller told this code |
//! | `garble=FORM` | the call is made, and what it gives changed: `flip` a bit, all `zero`, `repeat` what the function gave before, `cut` the last byte off; of C_GetTokenInfo `clock`: a time that is none |
//! | `gives=HEX` | the call is made, and what it gives are these bytes, as far as they go |
//! | `delay_ms=N` | first it waits |
//! | `hang` | it waits until the file changes |
//! | `inside=N` | it waits in its middle until the file changes: the N-th time, from 0, that the library wraps or unwraps, or where it makes a key takes random bytes. Only where this module is also preloaded (`LD_PRELOAD`) |
//! | `alone` | it is made on a thread that is the library's alone, whose stack and heap are therefore its, too |
//! | `exit=N` | the process ends |
//! | `log` | alone on its line: each call is written to the file's name with `.calls` added |
//!
//! A call that only asks for a length is passed on as it is and not counted.

mod control;
mod module;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

/// The file that says which faults there are, for who writes it.
#[derive(Clone, Debug)]
pub struct Faults(PathBuf);

impl Faults {
    /// Environment variable: the path of the real module.
    pub const REAL: &str = "KMS_FAULT_MODULE_REAL";
    /// Environment variable: the path of the file.
    pub const CONTROL: &str = "KMS_FAULT_MODULE_CONTROL";

    /// By this file, which need not be there.
    pub fn at(file: impl Into<PathBuf>) -> Self {
        Self(file.into())
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.0
    }

    /// From the next call on these rules hold and no others.
    pub fn set(&self, rules: &str) -> io::Result<()> {
        if let Err(bad) = control::parse(rules) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, bad));
        }
        let _ = fs::remove_file(control::held_of(&self.0));
        // Renamed into place: the module reads a file that is whole, and another than before.
        let new = self.0.with_added_extension("new");
        fs::write(&new, rules)?;
        fs::rename(new, &self.0)
    }

    /// No more faults; calls that hang go on.
    pub fn clear(&self) -> io::Result<()> {
        self.set("")
    }

    /// What a `log` wrote: function and answer of each call.
    pub fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(control::log_of(&self.0)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// A call that is held in its middle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The function.
    pub function: String,
    /// An address in the stack of the thread that makes it.
    pub stack: u64,
    /// One of what that thread allocates.
    pub heap: u64,
}

impl Faults {
    /// The call that is held since the rules were set.
    pub fn held(&self) -> Option<Held> {
        let text = fs::read_to_string(control::held_of(&self.0)).ok()?;
        let mut words = text.split(' ');
        let function = words.next()?.to_owned();
        let mut address = || words.next()?.parse().ok();
        Some(Held { function, stack: address()?, heap: address()? })
    }
}

/// Where cargo put the module: beside the test that asks, or one directory below.
pub fn library() -> PathBuf {
    let ours = env::current_exe().unwrap_or_default();
    let places = ours.ancestors().skip(1).take(2);
    let named = ["deps/libfault_module.so", "libfault_module.so"];
    let all = places.flat_map(|place| named.map(|name| place.join(name)));
    all.into_iter().find(|path| path.is_file()).unwrap_or_else(|| named[1].into())
}
