//! `ami-tool` as a child process: what a user would type, and what comes back.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
};

use serde::{Deserialize, Serialize};

/// The tool did not do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be run.
    #[error("running {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It said no.
    #[error("ami-tool {arguments} ended with {status}:\n{output}")]
    Failed {
        /// The tool's arguments.
        arguments: String,
        /// The exit status.
        status: std::process::ExitStatus,
        /// The tool's output.
        output: String,
    },
    /// A line of its answer is not what is documented.
    #[error("ami-tool answered {line:?}")]
    BadLine {
        /// The line.
        line: String,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// It did not answer each question.
    #[error("ami-tool answered {answers} of {questions} telegrams:\n{output}")]
    Missing {
        /// Lines in.
        questions: usize,
        /// Lines out.
        answers: usize,
        /// The tool's standard error.
        output: String,
    },
}

/// One telegram to open; a JSON line for `ami-tool decrypt -`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DecryptRequest {
    /// The caller's own name for it; comes back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The meter, by its id; `None`: by the title that is here or that the APDU carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meter: Option<String>,
    /// The meter, by its title in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_title: Option<String>,
    /// The meter's security setup; `None`: each in turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security_setup: Option<u32>,
    /// The ciphered APDU in hexadecimal.
    pub apdu: String,
}

/// The outcome of one telegram.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DecryptResult {
    /// The meter that was asked for.
    pub meter: Option<String>,
    /// The title of the meter whose keys were used, in hexadecimal.
    pub system_title: Option<String>,
    /// As in `ami.kms.v1.Verdict`.
    pub verdict: String,
    /// True if and only if the tag verified.
    pub authenticated: bool,
    /// In hexadecimal; empty unless opened.
    pub plaintext: Option<String>,
    /// 0: none took part.
    pub encryption_key_version: Option<u32>,
    /// 0: none took part.
    pub authentication_key_version: Option<u32>,
    /// The security setup whose keys opened it.
    pub security_setup: Option<u32>,
    /// As sent.
    pub invocation_counter: Option<u32>,
    /// One sentence for people.
    pub reason: Option<String>,
}

/// The tool with a client's configuration.
#[derive(Clone, Debug)]
pub struct AmiTool {
    program: PathBuf,
    config: PathBuf,
}

impl AmiTool {
    /// The program, and the configuration that it is to use.
    pub fn new(program: &Path, config: &Path) -> Self {
        Self { program: program.to_owned(), config: config.to_owned() }
    }

    /// `site status`: its text.
    pub fn status(&self) -> Result<String, ToolError> {
        self.succeed(&["site", "status"])
    }

    /// `meter import FILE`: its text.
    pub fn import(&self, file: &Path, allow_test_keys: bool) -> Result<String, ToolError> {
        let file = file.to_string_lossy();
        let mut arguments = vec!["meter", "import", &*file];
        if allow_test_keys {
            arguments.push("--allow-test-keys");
        }
        self.succeed(&arguments)
    }

    /// `decrypt - --json`: one result a request, in order, whatever the verdicts are.
    pub fn decrypt(&self, requests: &[DecryptRequest]) -> Result<Vec<DecryptResult>, ToolError> {
        let lines = json_lines(requests);
        let output = self.run(&["decrypt", "-", "--json"], &lines)?;
        // Its exit status tells of bad verdicts too, so it is not looked at.
        let results = String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).map_err(bad_line(line)))
            .collect::<Result<Vec<DecryptResult>, _>>()?;
        if results.len() == requests.len() {
            return Ok(results);
        }
        let output = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(ToolError::Missing { questions: requests.len(), answers: results.len(), output })
    }

    /// Runs it with `arguments`; its standard output, if it succeeded.
    pub fn succeed(&self, arguments: &[&str]) -> Result<String, ToolError> {
        let output = self.run(arguments, "")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        let output_text = said + &String::from_utf8_lossy(&output.stderr);
        let arguments = arguments.join(" ");
        Err(ToolError::Failed { arguments, status: output.status, output: output_text })
    }

    /// Runs it with `arguments` and `input`; whatever came of it.
    pub fn run(&self, arguments: &[&str], input: &str) -> Result<Output, ToolError> {
        let cannot_run = |source| ToolError::Spawn { program: self.program.clone(), source };
        let mut child = Command::new(&self.program)
            .arg("--config")
            .arg(&self.config)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(cannot_run)?;
        let stdin = child.stdin.take();
        thread::scope(|scope| {
            // Beside the reading: either pipe may fill up. That it stops listening early shows in
            // its answer.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
            child.wait_with_output()
        })
        .map_err(cannot_run)
    }
}

/// One line of JSON each.
pub(crate) fn json_lines<T: Serialize>(items: &[T]) -> String {
    let line = |item: &T| serde_json::to_string(item).unwrap_or_default() + "\n";
    items.iter().map(line).collect()
}

fn bad_line(line: &str) -> impl FnOnce(serde_json::Error) -> ToolError {
    move |source| ToolError::BadLine { line: line.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_not_given_are_not_sent() {
        let request = DecryptRequest { apdu: "DB".to_owned(), ..DecryptRequest::default() };
        assert_eq!(json_lines(&[request]), "{\"apdu\":\"DB\"}\n");
    }

    #[test]
    fn an_answer_that_is_not_json_is_not_passed_over() {
        let tool = AmiTool::new("/bin/echo".as_ref(), "client.toml".as_ref());
        let request = DecryptRequest { apdu: "DB".to_owned(), ..DecryptRequest::default() };
        assert!(matches!(tool.decrypt(&[request]), Err(ToolError::BadLine { .. })));
    }

    #[test]
    fn a_telegram_without_an_answer_is_not_passed_over() {
        let tool = AmiTool::new("/bin/true".as_ref(), "client.toml".as_ref());
        let request = DecryptRequest { apdu: "DB".to_owned(), ..DecryptRequest::default() };
        let answer = tool.decrypt(&[request]);
        assert!(matches!(answer, Err(ToolError::Missing { questions: 1, answers: 0, .. })));
    }
}
