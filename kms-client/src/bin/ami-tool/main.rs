//! `ami-tool`: meters and their messages from the command line.
//!
//! [`args`] says what can be asked, one module a command carries it out, [`failure`] knows the exit
//! codes.

mod approvals;
mod args;
mod asking;
mod audit;
mod burying_args;
mod check_keys;
mod code_hints;
mod divergence;
mod divergence_args;
mod duplicates;
mod encrypt;
mod exit;
mod failure;
mod format_arg;
mod group;
mod group_args;
mod hex_digits;
mod hints;
mod hls;
mod import;
mod item_args;
mod items;
mod key;
mod key_args;
mod key_text;
mod key_trials;
mod lines;
mod memory;
mod meter;
mod open;
mod plan;
mod receipt;
mod recorded;
mod refusals;
mod roles;
mod rotate;
mod rotate_args;
mod rotate_meter;
mod rotate_start;
mod rotate_text;
mod rotate_watch;
mod rotate_words;
mod seal;
mod seal_args;
mod seconds;
mod site;
mod site_args;
mod site_keys;
mod switchover;
mod syncing;
mod template;
mod text;
mod triage;
mod triage_args;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use kms_client::{ClientConfig, KmsClient, MeterName, RequestId, SyncOptions};

use args::{Arguments, Command, SiteCommand, SyncMeter};
use failure::{Exit, Failure};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.json;
    let id = arguments.request_id.clone().unwrap_or_else(RequestId::random);
    if arguments.verbose {
        // A closed standard error is no reason not to do what was asked.
        let _ = writeln!(io::stderr(), "request {id}");
    }
    start(arguments, id).map_or_else(|failure| failure.report(json), ExitCode::from)
}

fn start(arguments: Arguments, id: RequestId) -> Result<Exit, Failure> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build();
    let failed = |error| Failure::files(format!("the runtime does not start: {error}"));
    runtime.map_err(failed)?.block_on(run(arguments, id))
}

async fn run(arguments: Arguments, id: RequestId) -> Result<Exit, Failure> {
    let Arguments { config, json, site, .. } = &arguments;
    let (config, json, site) = (config.clone(), *json, site.clone());
    let command = arguments.errand()?;
    // Sealing takes place where the keys are, which need not be where the service is.
    if let Command::Meter { command: args::MeterCommand::Seal(what) } = command {
        return seal::run(what, json);
    }
    if let Command::Meter { command: args::MeterCommand::CheckKeys(what) } = command {
        return check_keys::run(what, json);
    }
    if let Command::Meter { command: args::MeterCommand::Import(what) } = &command
        && let Some(format) = what.template
    {
        return template::print(format);
    }
    let config = ClientConfig::load(&config)?;
    // A failure before this has made no request.
    let asked = async {
        let client = KmsClient::connect(config).await?.with_request_id(id.clone());
        let client = match &site {
            Some(site) => roles::at(&client, site)?,
            None => client,
        };
        ask(client, command, json).await
    };
    asked.await.map_err(|failure| failure.of_request(id))
}

/// Carries out what takes a connection.
async fn ask(client: KmsClient, command: Command, json: bool) -> Result<Exit, Failure> {
    match command {
        Command::Meter { command } => meter::run(&client, command, json).await,
        Command::Decrypt(what) => open::decrypt(&client, what, json).await,
        Command::Verify(what) => open::verify(&client, what, json).await,
        Command::Triage(what) => triage::run(&client, what, json).await,
        Command::Encrypt(what) => encrypt::encrypt(&client, what, json).await,
        Command::Hls { command } => hls::run(&client, command, json).await,
        Command::Key { command } => key::run(&client, command, json).await,
        Command::Group { command } => group::run(&client, command, json).await,
        Command::Rotate { command } => rotate::run(&client, command, json).await,
        Command::Approvals { command } => approvals::run(&client, command, json).await,
        Command::Audit { command } => audit::run(&client, command, json).await,
        Command::Site { command } => match command {
            SiteCommand::Status(what) if what.readiness => {
                plan::readiness(&client, what, json).await
            }
            SiteCommand::Status(_) => site::status(&client, json).await,
            SiteCommand::Plan(what) => plan::plan(&client, what, json).await,
            SiteCommand::ImportKey(what) => site::import_key(&client, what, json).await,
            SiteCommand::Enrol(what) => site::enrol(&client, what, json).await,
            SiteCommand::Promote(what) => roles::promote(&client, what, json).await,
            SiteCommand::Demote(what) => roles::demote(&client, what, json).await,
            SiteCommand::Switchover(what) => switchover::run(&client, what, json).await,
            SiteCommand::Divergence { command } => divergence::run(&client, command, json).await,
            SiteCommand::AdmitEpoch(what) => divergence::admit(&client, what, json).await,
            SiteCommand::RotateSecrets(what) => {
                site_keys::rotate_secrets(&client, what, json).await
            }
            SiteCommand::RotateKek(what) => site_keys::rotate_kek(&client, what, json).await,
            SiteCommand::DestroyKek(what) => site_keys::destroy_kek(&client, what, json).await,
            SiteCommand::ForgetList(what) => divergence::forget_list(&client, what, json).await,
        },
        Command::SyncMeter(what) => sync_meter(&client, what, json).await,
    }
}

/// Has the block of one meter sent to the other site again, and proved there.
async fn sync_meter(client: &KmsClient, what: SyncMeter, json: bool) -> Result<Exit, Failure> {
    let SyncMeter { meter_id, dry_run } = what;
    let meter = client.meters().get(&MeterName::Id(meter_id)).await?;
    let blocks = vec![meter.block];
    let options = SyncOptions { target: String::new(), force: false, dry_run, blocks };
    syncing::run(client, options, json).await
}

#[cfg(test)]
mod advice_tests;
#[cfg(test)]
mod rotate_samples_tests;
