//! Exit codes, and what is said when something fails.

use std::io::{self, Write as _};
use std::process::ExitCode;

use kms_client::{CallError, ConfigError, ConnectError, RequestId};
use serde_json::json;

pub(crate) use crate::exit::Exit;
use crate::hints::{PUT_BACK, Source, hint};

/// The reason why the command was not carried out, and what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    code: Box<str>,
    /// The service's own word, where it has one.
    word: Box<str>,
    reason: Box<str>,
    next_step: &'static str,
    /// The name of the request, if one may have been made.
    request: Option<RequestId>,
}

impl Failure {
    pub(crate) fn usage(reason: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "USAGE", reason.into(), "see --help")
    }

    pub(crate) fn files(reason: impl Into<String>) -> Self {
        Self::new(Exit::Files, "FILES", reason.into(), "")
    }

    /// Whoever read standard output has seen enough (`| head`): there is nothing to say, and to nobody.
    pub(crate) fn reader_gone() -> Self {
        Self::new(Exit::ReaderGone, "READER_GONE", String::new(), "")
    }

    pub(crate) fn refused(code: &str, reason: impl Into<String>) -> Self {
        Self::new(Exit::Refused, code, reason.into(), "")
    }

    fn new(exit: Exit, code: &str, reason: String, next_step: &'static str) -> Self {
        let (code, word) = (code.into(), code.into());
        Self { exit, code, word, reason: reason.into(), next_step, request: None }
    }

    /// Adds how far the command had got.
    pub(crate) fn after(mut self, done: impl std::fmt::Display) -> Self {
        self.reason = format!("{} ({done})", self.reason).into();
        self
    }

    /// Adds which of the sites it was.
    pub(crate) fn of_site(mut self, name: &str) -> Self {
        self.reason = format!("site {name}: {}", self.reason).into();
        self
    }

    /// Another next step than its row's, which knows nothing of the command.
    pub(crate) fn with_next(self, next_step: &'static str) -> Self {
        Self { next_step, ..self }
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
        let Self { exit, code, word, reason, next_step, request } = self;
        if exit == Exit::ReaderGone {
            return exit.into();
        }
        let request = request.as_ref().map(RequestId::as_str);
        let text = if json {
            let mut error =
                json!({ "code": code, "word": word, "reason": reason, "next_step": next_step });
            if let Some(request) = request {
                error["request_id"] = request.into();
            }
            json!({ "error": error }).to_string()
        } else {
            let next = (!next_step.is_empty()).then(|| format!("\nnext: {next_step}"));
            // The service may have said it already.
            let request = request.filter(|id| !reason.contains(id));
            let request = request.map(|id| format!("\nrequest: {id}"));
            format!(
                "{}: {reason}{}{}",
                env!("CARGO_BIN_NAME"),
                next.unwrap_or_default(),
                request.unwrap_or_default()
            )
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
        // Source, kind of failure for scripts, and the word that finds its row.
        let (source, code, word) = match &error {
            CallError::Unreachable { .. } => (Source::Transport, "UNREACHABLE", ""),
            CallError::OutcomeUnknown { .. } => (Source::Transport, "OUTCOME_UNKNOWN", ""),
            CallError::DeadlineExceeded => (Source::Transport, "DEADLINE_EXCEEDED", ""),
            CallError::Protocol(_) => (Source::Transport, "PROTOCOL", ""),
            CallError::CertificateRefused { code, .. } => {
                (Source::Certificate, "CERTIFICATE_REFUSED", &**code)
            }
            CallError::ServerNotTrusted { .. } => (Source::Certificate, "SERVER_NOT_TRUSTED", ""),
            CallError::Unavailable { code, .. } => (Source::Unavailable, "UNAVAILABLE", &**code),
            CallError::Busy { code, .. } => (Source::Busy, "BUSY", &**code),
            CallError::PermissionDenied { code, .. } => {
                (Source::Denied, "PERMISSION_DENIED", &**code)
            }
            CallError::NotFound { code, .. } => (Source::NotFound, "NOT_FOUND", &**code),
            CallError::SecondPersonNeeded { .. } => (Source::Refused, "SECOND_PERSON_NEEDED", ""),
            CallError::Refused { code, .. } => (Source::Refused, &**code, ""),
            CallError::Service { code, .. } => (Source::Service, "SERVICE", &**code),
            _ => (Source::Service, "SERVICE", ""),
        };
        let word = if word.is_empty() { code } else { word };
        let hint = hint(source, word);
        let is_put_back = word == "NOT_PRIMARY" && reason.contains("ROLLED_BACK");
        let next = if is_put_back { PUT_BACK } else { hint.next };
        Self { word: word.into(), ..Self::new(hint.exit, code, reason, next) }
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

    #[test]
    fn a_site_that_was_put_back_is_not_a_fault_of_the_endpoints() {
        let of = |reason: &str| {
            let (code, reason) = ("NOT_PRIMARY".to_owned(), reason.to_owned());
            Failure::from(CallError::Refused { code, reason }).next_step
        };
        assert!(of("this site does not write").starts_with("name servers of the primary"));
        assert!(of("this site was put back (ROLLED_BACK), and …").contains("--above-epoch"));
    }

    fn exit_of(error: CallError) -> Exit {
        Failure::from(error).exit
    }

    #[test]
    fn a_denied_call_does_not_look_like_an_unreachable_service() {
        let (code, reason) = ("NOT_GRANTED".to_owned(), "x".to_owned());
        let denied = CallError::PermissionDenied { code: code.clone(), reason: reason.clone() };
        assert_eq!(exit_of(denied), Exit::Denied);
        let refused = CallError::CertificateRefused { code: code.clone(), reason: reason.clone() };
        assert_eq!(exit_of(refused), Exit::Certificate);
        assert_eq!(
            exit_of(CallError::ServerNotTrusted { reason: reason.clone() }),
            Exit::Certificate
        );
        assert_eq!(exit_of(CallError::Unreachable { reason: reason.clone() }), Exit::Unreachable);
        assert_eq!(exit_of(CallError::DeadlineExceeded), Exit::Unreachable);
        assert_eq!(exit_of(CallError::NotFound { code, reason }), Exit::Refused);
    }
}
