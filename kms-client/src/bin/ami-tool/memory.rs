//! Memory that no swap and no core dump gets: for a process that opens keys. All of it is locked, stack and heap, what
//! libraries copy included, now and whatever comes.

use std::fs;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

use crate::failure::Failure;

/// `CAP_IPC_LOCK` among a process's effective capabilities: for it there is no limit.
const CAP_IPC_LOCK: u64 = 1 << 14;

/// Locks all memory of this process. `false`: it can't be, and `although` that is so the caller goes on.
pub(crate) fn lock(although: bool) -> Result<bool, Failure> {
    let failed = |what: &str, error| Failure::files(format!("{what}: {error}"));
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|error| failed("switching core dumps off", error))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| failed("switching core dumps off", error))?;
    // Under a limit the process would end where it asks for more: so all or nothing, and now.
    if getrlimit(Resource::Memlock).current.is_none() || is_privileged() {
        let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
        if mlockall(all).is_ok() {
            return Ok(true);
        }
    }
    if although {
        return Ok(false);
    }
    Err(Failure::files(
        "this process's memory can't be locked against swap, and it would hold keys: raise the limit (`ulimit -l \
         unlimited`, or `systemd-run --property LimitMEMLOCK=infinity`), or pass --allow-unlocked for a trial",
    ))
}

fn is_privileged() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|capabilities| capabilities & CAP_IPC_LOCK != 0)
}
