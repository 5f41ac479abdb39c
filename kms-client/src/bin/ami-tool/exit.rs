//! The tool's exit codes.

use std::process::ExitCode;

/// An exit code of the tool. The table in `--help` explains the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Good = 0,
    Refused = 1,
    Usage = 2,
    Files = 3,
    Unreachable = 4,
    Denied = 5,
    Certificate = 6,
    /// As a shell tells of a program that wrote to a reader who had gone (128 + SIGPIPE).
    ReaderGone = 141,
}

impl Exit {
    /// Good, if all was.
    pub(crate) fn good_if(good: bool) -> Self {
        if good { Self::Good } else { Self::Refused }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
