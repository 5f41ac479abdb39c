//! Exit codes, and what is said when something fails.

use std::io::{self, Write as _};
use std::process::ExitCode;

use kms_client::{CallError, ConfigError, ConnectError, RequestId};
use serde_json::json;

/// How the tool ends. The table in `--help` explains the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Good = 0,
    Refused = 1,
    Usage = 2,
    Files = 3,
    Unreachable = 4,
    Denied = 5,
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

/// Why the command was not carried out, and what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    code: String,
    reason: String,
    next_step: &'static str,
    /// What the request was called, if one may have been made.
    request: Option<RequestId>,
}

impl Failure {
    pub(crate) fn usage(reason: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "USAGE", reason.into(), "see --help")
    }

    pub(crate) fn files(reason: impl Into<String>) -> Self {
        Self::new(Exit::Files, "FILES", reason.into(), "")
    }

    pub(crate) fn refused(code: &str, reason: impl Into<String>) -> Self {
        Self::new(Exit::Refused, code, reason.into(), "")
    }

    fn new(exit: Exit, code: &str, reason: String, next_step: &'static str) -> Self {
        Self { exit, code: code.to_owned(), reason, next_step, request: None }
    }

    /// Adds how far the command had got.
    pub(crate) fn after(mut self, done: impl std::fmt::Display) -> Self {
        self.reason = format!("{} ({done})", self.reason);
        self
    }

    /// Adds what the request was called, unless the fault is the command line's or a file's.
    pub(crate) fn of_request(mut self, id: RequestId) -> Self {
        if !matches!(self.exit, Exit::Usage | Exit::Files) {
            self.request = Some(id);
        }
        self
    }

    /// Says it on standard error, and gives the exit code.
    pub(crate) fn report(self, json: bool) -> ExitCode {
        let Self { exit, code, reason, next_step, request } = self;
        let request = request.as_ref().map(RequestId::as_str);
        let text = if json {
            let mut error = json!({ "code": code, "reason": reason, "next_step": next_step });
            if let Some(request) = request {
                error["request_id"] = request.into();
            }
            json!({ "error": error }).to_string()
        } else {
            let next = (!next_step.is_empty()).then(|| format!("\nnext: {next_step}"));
            // The service may have said it already.
            let request = request.filter(|id| !reason.contains(id));
            let request = request.map(|id| format!("\nrequest: {id}"));
            format!("ami-tool: {reason}{}{}", next.unwrap_or_default(), request.unwrap_or_default())
        };
        // Nowhere left to complain to.
        let _ = writeln!(io::stderr(), "{text}");
        exit.into()
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let next =
            "set --config or AMI_CLIENT_CONFIG to a client.toml, and check the files it names";
        Self::new(Exit::Files, "CONFIGURATION", chain(&error), next)
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Config(error) => error.into(),
            ConnectError::Call(error) => error.into(),
            other => Self::new(Exit::Unreachable, "CONNECT", chain(&other), ""),
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let reason = chain(&error);
        let (exit, code, next) = match error {
            CallError::Unreachable { .. } => (
                Exit::Unreachable,
                "UNREACHABLE".into(),
                "check that the server runs, and `endpoints`, `ca` and `server_name` in client.toml",
            ),
            CallError::Busy { .. } => (Exit::Unreachable, "BUSY".into(), "try again later"),
            CallError::DeadlineExceeded => (
                Exit::Unreachable,
                "DEADLINE_EXCEEDED".into(),
                "look at `site status`, or raise `deadline_ms` in client.toml",
            ),
            CallError::PermissionDenied { .. } => (
                Exit::Denied,
                "PERMISSION_DENIED".into(),
                "use a certificate that the server's configuration grants this call",
            ),
            CallError::NotFound { .. } => {
                (Exit::Refused, "NOT_FOUND".into(), "`meter list` shows what there is")
            }
            CallError::SecondPersonNeeded { .. } => (
                Exit::Refused,
                "SECOND_PERSON_NEEDED".into(),
                "once a second person has approved it, run the same command again",
            ),
            CallError::Refused { code, .. } => (Exit::Refused, code, ""),
            CallError::Protocol(_) => {
                (Exit::Unreachable, "PROTOCOL".into(), "use tool and server of one version")
            }
            _ => (Exit::Unreachable, "SERVICE".into(), "the server's log says more"),
        };
        Self { exit, code, reason, next_step: next, request: None }
    }
}

/// An error and its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_of(error: CallError) -> Exit {
        Failure::from(error).exit
    }

    #[test]
    fn a_denied_call_does_not_look_like_an_unreachable_service() {
        assert_eq!(exit_of(CallError::PermissionDenied { reason: "x".into() }), Exit::Denied);
        assert_eq!(exit_of(CallError::Unreachable { reason: "x".into() }), Exit::Unreachable);
        assert_eq!(exit_of(CallError::DeadlineExceeded), Exit::Unreachable);
        assert_eq!(exit_of(CallError::NotFound { reason: "x".into() }), Exit::Refused);
    }
}
