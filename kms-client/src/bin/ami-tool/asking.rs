//! Questions to whoever sits at the terminal.

use std::io::{self, IsTerminal as _, Write as _};

use crate::failure::Failure;

/// Asks whoever sits at the terminal to type the name once more.
pub(crate) fn confirmed(name: &str, question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("nobody can be asked here; say --yes to go on without asking"));
    }
    let failed = |error: io::Error| Failure::files(format!("the terminal: {error}"));
    let mut terminal = io::stderr();
    write!(terminal, "{question}").and_then(|()| terminal.flush()).map_err(failed)?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(failed)?;
    Ok(answer.trim() == name)
}
