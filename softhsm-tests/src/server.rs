//! The server as a child process.

use std::{
    fs::{File, OpenOptions},
    io,
    net::{SocketAddr, TcpStream},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use fault_module::Faults;
use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid},
};

use crate::{Site, files::tail};

/// The server did not do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The program could not be run.
    #[error("running {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A verb that ends by itself ended badly.
    #[error("kms-server {verb} ended with {status}:\n{output}")]
    Failed {
        /// `init`, `check-config`, …
        verb: &'static str,
        /// The exit status.
        status: ExitStatus,
        /// The program's output.
        output: String,
    },
    /// It ended before it was ready.
    #[error("kms-server serve ended with {status}:\n{output}")]
    EndedEarly {
        /// The exit status.
        status: ExitStatus,
        /// The end of its log.
        output: String,
    },
    /// It runs but does not listen.
    #[error("kms-server serve was not ready after {} s:\n{output}", patience.as_secs())]
    NotReady {
        /// The time that it was waited for.
        patience: Duration,
        /// The end of its log.
        output: String,
    },
    /// Another process has the site's port.
    #[error("port {0} is taken: is the site's server running already?")]
    PortTaken(u16),
    /// It could not be waited for or signalled.
    #[error("following kms-server")]
    Process(#[source] io::Error),
    /// A file of the site could not be opened.
    #[error("opening {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The longest time until a server listens: unoptimised, on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// The longest time for it to drain after SIGTERM before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at it.
const POLL: Duration = Duration::from_millis(10);
/// The most lines of its log that an error shows.
const LOG_LINES: usize = 40;

impl Site {
    /// Makes token, keys and database: `kms-server init`.
    pub fn init(&self) -> Result<(), ServerError> {
        let so_pin = self.places.so_pin.as_os_str();
        self.run("init", &["--create-token".as_ref(), "--so-pin-file".as_ref(), so_pin])?;
        let mark = self.places.init_mark();
        File::create(&mark).map_err(|source| ServerError::File { path: mark, source })?;
        Ok(())
    }

    /// Whether [`Site::init`] has been through.
    pub fn is_initialised(&self) -> bool {
        self.places.init_mark().exists()
    }

    /// Runs a verb of `kms-server` that ends by itself; its standard output.
    pub fn run(
        &self,
        verb: &'static str,
        arguments: &[&std::ffi::OsStr],
    ) -> Result<String, ServerError> {
        let output = self
            .command(verb)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| self.cannot_run(source))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        let output_text = said + &String::from_utf8_lossy(&output.stderr);
        Err(ServerError::Failed { verb, status: output.status, output: output_text })
    }

    /// Starts the server and waits until it listens. Its log goes to `server.log`.
    pub fn start(&self) -> Result<Running, ServerError> {
        let mut running = self.spawn(&mut self.command("serve"))?;
        running.wait_until_it_listens(self.listens())?;
        Ok(running)
    }

    /// Like [`Site::start`], out of reach of a Ctrl-C in the terminal: the caller stops it.
    pub fn start_apart(&self) -> Result<Running, ServerError> {
        let mut running = self.spawn(self.command("serve").process_group(0))?;
        running.wait_until_it_listens(self.listens())?;
        Ok(running)
    }

    /// A command with the site's configuration and token.
    pub fn command(&self, verb: &str) -> Command {
        let program = &self.programs.kms_server;
        let mut command = match &self.network {
            Some(network) => network.command(program),
            None => Command::new(program),
        };
        command
            .arg("--config")
            .arg(&self.places.kms_toml)
            .arg(verb)
            .env("SOFTHSM2_CONF", &self.places.softhsm_conf)
            .env("KRYOPTIC_CONF", &self.places.kryoptic_conf)
            // Of use where `hsm.module` is the module that makes faults.
            .env(Faults::REAL, &self.programs.softhsm)
            .env(Faults::CONTROL, self.faults().file())
            .current_dir(&self.places.dir);
        command
    }

    /// The faults of a token whose `hsm.module` is [`fault_module::library`].
    pub fn faults(&self) -> Faults {
        Faults::at(self.places.dir.join("faults"))
    }

    fn spawn(&self, command: &mut Command) -> Result<Running, ServerError> {
        if is_taken(self.listens()) {
            return Err(ServerError::PortTaken(self.port()));
        }
        let path = self.places.log.clone();
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.map_err(|source| ServerError::File { path: path.clone(), source })?;
        let second = log.try_clone().map_err(ServerError::Process)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(second)
            .spawn()
            .map_err(|source| self.cannot_run(source))?;
        Ok(Running { child, log: path })
    }

    fn listens(&self) -> SocketAddr {
        (self.address(), self.port()).into()
    }

    fn cannot_run(&self, source: io::Error) -> ServerError {
        ServerError::Spawn { program: self.programs.kms_server.clone(), source }
    }
}

/// A server that runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.log, LOG_LINES)
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, ServerError> {
        self.child.try_wait().map_err(ServerError::Process)
    }

    /// Sends it a signal: SIGSTOP, SIGCONT, SIGHUP, … With SIGSTOP, all of its threads stand still when this returns: until then
    /// one of them may answer a call.
    pub fn signal(&self, signal: Signal) -> Result<(), ServerError> {
        let failed = |errno: Errno| ServerError::Process(errno.into());
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| ServerError::Process(io::ErrorKind::InvalidInput.into()))?;
        kill_process(pid, signal).map_err(failed)?;
        if signal == Signal::STOP {
            // Left to be waited for: it is another's to reap.
            let until = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(pid), until).map_err(failed)?;
        }
        Ok(())
    }

    /// Kills it in the middle of whatever it does.
    pub fn kill_9(mut self) -> Result<(), ServerError> {
        self.child.kill().map_err(ServerError::Process)?;
        self.child.wait().map_err(ServerError::Process)?;
        Ok(())
    }

    /// Asks it to stop (SIGTERM), and waits until it has drained. Killed if it takes too long, which
    /// shows in the status.
    pub fn stop(mut self) -> Result<ExitStatus, ServerError> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + STOP_PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
        self.child.kill().map_err(ServerError::Process)?;
        self.child.wait().map_err(ServerError::Process)
    }

    fn wait_until_it_listens(&mut self, at: SocketAddr) -> Result<(), ServerError> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let listens = is_taken(at);
            // Asked after the connection: who answers may be another process that was faster.
            if let Some(status) = self.ended()? {
                return Err(ServerError::EndedEarly { status, output: self.log_tail() });
            }
            if listens {
                return Ok(());
            }
            if Instant::now() > deadline {
                let output = self.log_tail();
                return Err(ServerError::NotReady { patience: START_PATIENCE, output });
            }
            thread::sleep(POLL);
        }
    }
}

/// Whether somebody listens there.
fn is_taken(at: SocketAddr) -> bool {
    TcpStream::connect_timeout(&at, POLL).is_ok()
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Whether a process ended by a signal instead of by itself.
pub fn was_killed(status: ExitStatus) -> bool {
    status.signal().is_some()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::{Programs, SiteOptions};

    /// A site whose server is a shell script.
    fn site(dir: &std::path::Path, script: &str) -> Site {
        let server = dir.join("server.sh");
        std::fs::write(&server, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&server, std::fs::Permissions::from_mode(0o700)).unwrap();
        let programs = Programs {
            kms_server: server,
            ami_tool: "/bin/false".into(),
            softhsm: "/lib/libsofthsm2.so".into(),
        };
        Site::make(&dir.join("site"), programs, SiteOptions::default()).unwrap()
    }

    #[test]
    fn a_server_that_ends_at_once_is_not_waited_for_and_its_words_are_shown() {
        let dir = tempfile::tempdir().unwrap();
        let error = site(dir.path(), "echo no token here >&2; exit 4").start().unwrap_err();
        assert!(
            matches!(&error, ServerError::EndedEarly { status, .. } if status.code() == Some(4))
        );
        assert!(error.to_string().contains("no token here"));
    }

    #[test]
    fn a_port_that_somebody_has_is_not_mistaken_for_the_servers() {
        let dir = tempfile::tempdir().unwrap();
        let site = site(dir.path(), "sleep 60");
        let _other = std::net::TcpListener::bind(("127.0.0.1", site.port())).unwrap();
        assert!(matches!(site.start(), Err(ServerError::PortTaken(port)) if port == site.port()));
    }

    #[test]
    fn an_init_that_fails_does_not_count_as_done() {
        let dir = tempfile::tempdir().unwrap();
        let site = site(dir.path(), "echo bad PIN >&2; exit 4");
        assert!(site.init().unwrap_err().to_string().contains("bad PIN"));
        assert!(!site.is_initialised());
    }

    #[test]
    fn init_gets_the_token_configuration_and_no_pin_on_its_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let site = site(dir.path(), r#"test -f "$SOFTHSM2_CONF" || exit 9; echo "$@" > arguments"#);
        site.init().unwrap();
        assert!(site.is_initialised());
        let arguments = std::fs::read_to_string(site.places().dir.join("arguments")).unwrap();
        let pin = std::fs::read_to_string(&site.places().so_pin).unwrap();
        assert!(arguments.contains("init --create-token --so-pin-file"), "{arguments}");
        assert!(!arguments.contains(&pin));
    }
}
