//! `sync-keys`: runs until the keys of a site are proved equal to the primary's.

// What `ami-tool` says and ends with, so does this.
#[path = "../ami-tool/code_hints.rs"]
mod code_hints;
#[path = "../ami-tool/exit.rs"]
mod exit;
#[path = "../ami-tool/failure.rs"]
#[allow(dead_code, reason = "ami-tool uses the rest")]
mod failure;
#[path = "../ami-tool/hints.rs"]
mod hints;
#[path = "../ami-tool/syncing.rs"]
mod syncing;
#[path = "../ami-tool/text.rs"]
#[allow(dead_code, reason = "ami-tool uses the rest")]
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kms_client::{ClientConfig, KmsClient, RequestId, SyncOptions};

use failure::{Exit, Failure};

const EXIT_CODES: &str = "\
Exit codes:
  0  the target is proved equal; with --dry-run: nothing differs
  1  it is not, or the call was refused; with --dry-run: something differs
  2  the command line is wrong: another mode than secure, or an unknown target
  3  the configuration or a file cannot be used
  4  the service is unreachable, busy, late or failing
  5  the certificate does not grant the call
  6  the certificate, or the server's, is not accepted
  141  whoever read the output went away before its end";

/// The meaning of the one mode, for who asks for another.
const SECURE: &str = "`secure` is the only mode: keys cross as they are stored, wrapped under secrets that \
    only the tokens of the two sites open; each record is authenticated before it is written, and each block \
    opened by the target's token before it counts. A mode that leaves one of these out would hand out keys, or \
    take what is not the primary's";

/// Bring the keys of a site in step with the primary, and prove it
#[derive(Parser)]
#[command(name = "sync-keys", version, after_help = EXIT_CODES)]
struct Arguments {
    /// How keys cross; `secure` is the only way
    #[arg(long, value_name = "MODE")]
    mode: String,
    /// The site that is to be in step, by its name
    #[arg(long, value_name = "NODE")]
    target: String,
    /// Compare and repair every block, whatever state both sites say that it is in
    #[arg(long)]
    force: bool,
    /// List blocks and meters that differ, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// The client's configuration
    #[arg(long, env = "AMI_CLIENT_CONFIG", default_value = "/etc/ami/client.toml")]
    config: PathBuf,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.json;
    start(arguments).map_or_else(|failure| failure.report(json), ExitCode::from)
}

fn start(arguments: Arguments) -> Result<Exit, Failure> {
    if arguments.mode != "secure" {
        let mode = &arguments.mode;
        return Err(Failure::usage(format!("--mode={mode} is refused: {SECURE}")));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::files(format!("the runtime does not start: {error}")))?;
    let id = RequestId::random();
    let asked = runtime.block_on(ask(arguments, &id));
    asked.map_err(|failure| failure.of_request(id))
}

async fn ask(arguments: Arguments, id: &RequestId) -> Result<Exit, Failure> {
    let Arguments { mode: _, target, force, dry_run, config, json } = arguments;
    let config = ClientConfig::load(&config)?;
    let client = KmsClient::connect(config).await?.with_request_id(id.clone());
    // Only the target's own servers can repair what both sites believe to be in step.
    let client = if force { client.at_site(&target).unwrap_or(client) } else { client };
    syncing::run(&client, SyncOptions { target, force, dry_run, blocks: Vec::new() }, json).await
}
