//! What can be asked. No argument ever holds a secret: other users can read them.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use kms_client::{ImportFormat, MeterId, ProfileName, RequestId, SystemTitle, parse_system_title};

use crate::burying_args::{Bury, Readmit};
use crate::divergence_args::{AdmitEpoch, DivergenceCommand, ForgetList};
use crate::encrypt::{DeclareCounter, Encrypt};
use crate::failure::Failure;
use crate::format_arg::{Format, format_of};
use crate::group_args::GroupCommand;
use crate::hls::HlsCommand;
use crate::item_args::Items;
use crate::key_args::KeyCommand;
use crate::rotate_args::{ROTATE_EXIT_CODES, RotateCommand};
use crate::seal_args::Seal;
use crate::site_args::{DestroyKek, Enrol, Plan, RotateKek, RotateSecrets, SiteStatusArgs};
use crate::triage_args::{CHECK_EXIT_CODES, CheckKeys, TRIAGE_EXIT_CODES, Triage};

const EXIT_CODES: &str = "\
Exit codes:
  0  all good
  1  something was refused, or a verdict was not OK (nor OK_UNAUTHENTICATED)
  2  the command line is wrong
  3  the configuration or a file cannot be used
  4  the service is unreachable, busy, late or failing
  5  the certificate does not grant the call
  6  the certificate, or the server's, is not accepted
  141  whoever read the output went away before its end (`| head`)";

/// Meters and their messages from the command line
#[derive(Parser)]
#[command(name = "ami-tool", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// The client's configuration
    #[arg(long, global = true, env = "AMI_CLIENT_CONFIG", default_value = "/etc/ami/client.toml")]
    pub(crate) config: PathBuf,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say on standard error what the request is called in the service's log
    #[arg(long, short, global = true)]
    pub(crate) verbose: bool,
    /// Call it this instead of something random: 1 to 64 letters, digits, `-`, `_`, `.` and `:`
    #[arg(long, global = true, value_name = "ID")]
    pub(crate) request_id: Option<RequestId>,
    /// Ask this site alone, as the client's configuration calls it
    #[arg(long, global = true, value_name = "SITE")]
    pub(crate) site: Option<String>,
    /// Send one meter's block to the other site again, and have it proved there; to do it again changes nothing
    #[arg(long, value_name = "METER_ID")]
    pub(crate) sync_meter: Option<MeterId>,
    /// With --sync-meter: say what differs, and change nothing
    #[arg(long, requires = "sync_meter")]
    pub(crate) dry_run: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

impl Arguments {
    /// The command, or the flag in the place of one; what clap can't check is.
    pub(crate) fn errand(self) -> Result<Command, Failure> {
        match (self.command, self.sync_meter) {
            (Some(command), None) => command.checked(),
            (None, Some(meter_id)) => {
                Ok(Command::SyncMeter(SyncMeter { meter_id, dry_run: self.dry_run }))
            }
            (Some(_), Some(_)) => {
                Err(Failure::usage("--sync-meter stands alone, without a command"))
            }
            (None, None) => Err(Failure::usage("say what is to be done")),
        }
    }
}

/// The runbook's flag: one meter.
pub(crate) struct SyncMeter {
    pub(crate) meter_id: MeterId,
    pub(crate) dry_run: bool,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create, show, list, delete or import meters
    #[command(after_help = EXIT_CODES)]
    Meter {
        #[command(subcommand)]
        command: MeterCommand,
    },
    /// Open what meters sent
    #[command(after_help = EXIT_CODES)]
    Decrypt(Items),
    /// Check the MIC of what meters sent; no plaintext comes back
    #[command(after_help = EXIT_CODES)]
    Verify(Items),
    /// Find out why frames of a meter don't open; no plaintext comes back
    #[command(after_help = TRIAGE_EXIT_CODES)]
    Triage(Triage),
    /// Protect one APDU for a meter
    #[command(after_help = EXIT_CODES)]
    Encrypt(Encrypt),
    /// Authenticate an association with a meter (HLS), step by step: the three go to one server, within two minutes
    #[command(after_help = EXIT_CODES)]
    Hls {
        #[command(subcommand)]
        command: HlsCommand,
    },
    /// Rotate one meter's keys: stage, send, confirm, and what else becomes of a key
    #[command(after_help = EXIT_CODES)]
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Broadcast groups: meters that share one broadcast key, which is rotated for all of them
    #[command(after_help = EXIT_CODES)]
    Group {
        #[command(subcommand)]
        command: GroupCommand,
    },
    /// Rotate the keys of many meters: campaigns, and what stands of a meter in one
    #[command(after_help = ROTATE_EXIT_CODES)]
    Rotate {
        #[command(subcommand)]
        command: RotateCommand,
    },
    /// Be the second person of calls that need two
    #[command(after_help = EXIT_CODES)]
    Approvals {
        #[command(subcommand)]
        command: ApprovalsCommand,
    },
    /// Ask the site how it is doing
    #[command(after_help = EXIT_CODES)]
    Site {
        #[command(subcommand)]
        command: SiteCommand,
    },
    /// Read the audit log, list its chains, or check it
    #[command(after_help = EXIT_CODES)]
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    #[command(skip)]
    SyncMeter(SyncMeter),
}

impl Command {
    /// What clap can't check: done before any connection is made.
    fn checked(self) -> Result<Self, Failure> {
        match &self {
            Self::Decrypt(items) | Self::Verify(items) => items.check()?,
            Self::Meter { command: MeterCommand::Import(import) } if import.template.is_none() => {
                import.source()?;
            }
            Self::Meter { command: MeterCommand::Seal(seal) } => {
                seal.form()?;
            }
            Self::Meter { command: MeterCommand::Get(get) } if get.both_or_neither() => {
                return Err(Failure::usage("name the meter: its ID, or --system-title HEX"));
            }
            _ => {}
        }
        Ok(self)
    }
}

#[derive(Subcommand)]
pub(crate) enum ApprovalsCommand {
    /// Show what waits for its second person at this site
    List,
    /// Approve a call; whoever made it then makes the same call again
    Approve(Approve),
}

#[derive(Args)]
pub(crate) struct Approve {
    /// The number in the refusal, and in `approvals list`
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Do not show the call and ask: approve what waits under this number now
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Subcommand)]
pub(crate) enum SiteCommand {
    /// Show role, warm-up, token, store, keyring and faults of each site
    Status(SiteStatusArgs),
    /// Say what a promotion of a site would cost now, and whether it would be refused. Changes nothing
    Plan(Plan),
    /// Make a site the one that writes
    Promote(Promote),
    /// End the epoch of the site that writes; nobody writes then until a site is promoted
    Demote(Demote),
    /// Demote the primary and promote the other site, in order: nothing is lost. To do it again goes on where
    /// it stopped
    Switchover(Switchover),
    /// Fetch the key that import files are sealed to. Compare its fingerprint with the one that
    /// `kms-server init` printed before using it
    ImportKey(ImportKey),
    /// Let another site join the key domain: after its security officer's `kms-server trust-peer`, at the
    /// site that writes. Writes the bundle for it
    Enrol(Enrol),
    /// Look at what one site wrote alone when the other was promoted, and decide about it
    Divergence {
        #[command(subcommand)]
        command: DivergenceCommand,
    },
    /// Take in a promotion of the other site that is more than one step ahead; takes a second person
    AdmitEpoch(AdmitEpoch),
    /// Have the secrets of all blocks rotated, while everything goes on; or say how far that is
    RotateSecrets(RotateSecrets),
    /// Have a new site KEK made and used, while everything goes on; or say how far that is
    RotateKek(RotateKek),
    /// Destroy the former site KEK, under which nothing is sealed any more but backups from before: those are lost with it
    DestroyKek(DestroyKek),
    /// Forget how new an authority's revocation list was; takes a second person
    ForgetList(ForgetList),
}

#[derive(Args)]
pub(crate) struct Promote {
    /// The site, as the client's configuration calls it; needed where that names several
    #[arg(value_name = "SITE")]
    pub(crate) name: Option<String>,
    /// The primary is lost or cut off, and was not demoted: what it wrote alone comes back as divergence
    #[arg(long)]
    pub(crate) primary_is_lost: bool,
    /// The site was restored or rebuilt: take an epoch above this one, the highest that anybody names
    #[arg(long, value_name = "N")]
    pub(crate) above_epoch: Option<u64>,
    /// Promote it although it is not proved that it can open what it stores
    #[arg(long)]
    pub(crate) although_unproved: bool,
    /// Refuse if the highest epoch that the site knows of is another one
    #[arg(long, value_name = "N")]
    pub(crate) expected_epoch: Option<u64>,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Args)]
pub(crate) struct Demote {
    /// The site, as the client's configuration calls it; needed where that names several
    #[arg(value_name = "SITE")]
    pub(crate) name: Option<String>,
    /// Refuse if the epoch that the site writes in is another one
    #[arg(long, value_name = "N")]
    pub(crate) expected_epoch: Option<u64>,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Args)]
pub(crate) struct Switchover {
    /// The site that is to write, as the client's configuration calls it
    #[arg(value_name = "SITE")]
    pub(crate) to: String,
    /// Wait so long for it to have all that the primary left; at most 300, so that an approval outlasts it
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(..=300))]
    pub(crate) wait: u64,
    /// The site was restored or rebuilt: take an epoch above this one, the highest that anybody names
    #[arg(long, value_name = "N")]
    pub(crate) above_epoch: Option<u64>,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Args)]
pub(crate) struct ImportKey {
    /// Write it to this file, for `meter seal --import-key`
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// The site whose key it is to be: each site has its own, and after a failover the other one answers
    #[arg(long, value_name = "SITE")]
    pub(crate) site: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum AuditCommand {
    /// Show what was done, in order
    List(AuditList),
    /// List the chains of this site: one a node, that of the node that answers first
    Nodes {
        /// Of the other site, by its name: its chains as the site that answers has copied them
        #[arg(long, value_name = "SITE", default_value = "", hide_default_value = true)]
        of: String,
    },
    /// Show what is done, as it is done; until it is interrupted
    Follow {
        /// Whose chain, 32 hex digits; that of the node that answers otherwise
        #[arg(long, value_name = "HEX", value_parser = parse_array::<16>)]
        node: Option<[u8; 16]>,
        /// Start after this event; at the end otherwise
        #[arg(long, value_name = "N")]
        after: Option<u64>,
    },
    /// Check all of a chain here, with its signed heads; ends with 1 and the first bad event if it is
    /// broken
    Verify(AuditVerify),
}

#[derive(Args)]
pub(crate) struct AuditList {
    /// Of the other site, by its name: its log as the site that answers has copied it
    #[arg(long, value_name = "SITE", default_value = "", hide_default_value = true)]
    pub(crate) of: String,
    /// Whose chain, 32 hex digits; that of the node that answers otherwise
    #[arg(long, value_name = "HEX", value_parser = parse_array::<16>)]
    pub(crate) node: Option<[u8; 16]>,
    /// Start after this event
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) after: u64,
    /// Only the last so many
    #[arg(long, value_name = "N", conflicts_with = "after")]
    pub(crate) last: Option<u64>,
    /// Show at most so many
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
}

#[derive(Args)]
pub(crate) struct AuditVerify {
    /// Of the other site, by its name: its log as the site that answers has copied it
    #[arg(long, value_name = "SITE", default_value = "", hide_default_value = true)]
    pub(crate) of: String,
    /// Whose chain, 32 hex digits; that of the node that answers otherwise
    #[arg(long, value_name = "HEX", value_parser = parse_array::<16>)]
    pub(crate) node: Option<[u8; 16]>,
    /// The key that heads are to be signed with: what `kms-server init` told of ami-signing. Once for each
    /// token that the site has or had since the chain began
    #[arg(long, value_name = "HEX", value_parser = parse_array::<32>)]
    pub(crate) key_fingerprint: Vec<[u8; 32]>,
    /// Remember in this file what was found good, and hold the chain against what it remembers
    #[arg(long, value_name = "FILE")]
    pub(crate) seen: Option<PathBuf>,
}

fn parse_array<const N: usize>(text: &str) -> Result<[u8; N], String> {
    let digits: String = text.chars().filter(|c| !matches!(c, ':' | ' ')).collect();
    let bytes = hex::decode(digits).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| format!("{} hex digits are needed", 2 * N))
}

#[derive(Subcommand)]
pub(crate) enum MeterCommand {
    /// Create one meter from a file that holds one import line as JSON
    Create(Create),
    /// Show one meter and what is known of its keys
    Get(Get),
    /// List meters in order of their ids
    List(List),
    /// Delete one meter; its key fingerprints stay known
    Delete(Delete),
    /// Bury a meter whose record was changed outside the service; `site status` names it
    Bury(Bury),
    /// Let a deleted meter be created again; takes a second person, and brings back nothing by itself
    Readmit(Readmit),
    /// Replace what is accepted from a meter
    SetPolicy(SetPolicy),
    /// Say which counter a meter's key was used with last: nothing is sent under an imported key before
    DeclareCounter(DeclareCounter),
    /// Import many meters from JSON Lines, CSV or a sealed file; to do it again changes nothing
    Import(Import),
    /// Seal an import file, or a supplier's key file, for a site's HSM; needs no connection
    Seal(Seal),
    /// Try the keys of an import file on frames that its meters sent; needs no connection
    #[command(after_help = CHECK_EXIT_CODES)]
    CheckKeys(CheckKeys),
}

#[derive(Args)]
pub(crate) struct Create {
    /// The file; `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) from: PathBuf,
    /// The device profile of its make; what the file says of its policy stays
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<ProfileName>,
    /// Accept all-zero and published test keys
    #[arg(long)]
    pub(crate) allow_test_keys: bool,
}

#[derive(Args)]
pub(crate) struct Get {
    /// The operator's name of the meter
    #[arg(value_name = "ID")]
    pub(crate) meter_id: Option<MeterId>,
    /// Its name on the wire, 16 hex digits
    #[arg(long, value_name = "HEX", value_parser = parse_system_title)]
    pub(crate) system_title: Option<SystemTitle>,
}

impl Get {
    fn both_or_neither(&self) -> bool {
        self.meter_id.is_some() == self.system_title.is_some()
    }
}

#[derive(Args)]
pub(crate) struct List {
    /// Start after this meter id
    #[arg(long, value_name = "ID")]
    pub(crate) after: Option<MeterId>,
    /// Show at most so many
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
}

#[derive(Args)]
pub(crate) struct Delete {
    /// The operator's name of the meter
    #[arg(value_name = "ID")]
    pub(crate) meter_id: MeterId,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Args)]
pub(crate) struct SetPolicy {
    /// The operator's name of the meter
    #[arg(value_name = "ID")]
    pub(crate) meter_id: MeterId,
    /// The policy as import lines have it, in JSON; `-` for standard input. What it leaves out becomes the
    /// default
    #[arg(long, value_name = "FILE")]
    pub(crate) from: PathBuf,
}

#[derive(Args)]
pub(crate) struct Import {
    /// The file; `-` for standard input
    #[arg(required_unless_present = "template")]
    pub(crate) file: Option<PathBuf>,
    /// Print a file that can be imported, with every column or field there is, and end; needs no
    /// connection. Its keys are published ones
    #[arg(long, value_name = "FORMAT", value_enum, num_args = 0..=1, default_missing_value = "csv")]
    pub(crate) template: Option<Template>,
    /// Accept all-zero and published test keys
    #[arg(long)]
    pub(crate) allow_test_keys: bool,
    /// Keep key values that a meter does not know yet as new versions, beside the old ones
    #[arg(long)]
    pub(crate) add_versions: bool,
    /// Give a known meter the policy of its line
    #[arg(long)]
    pub(crate) change_policy: bool,
    /// Check everything, change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How the file is written; told by its extension (.jsonl, .ndjson, .csv, .tsv) otherwise
    #[arg(long)]
    pub(crate) format: Option<Format>,
}

impl Import {
    /// The file, and how it is written.
    pub(crate) fn source(&self) -> Result<(&Path, ImportFormat), Failure> {
        let file = self.file.as_deref().ok_or_else(|| Failure::usage("say which file"))?;
        Ok((file, format_of(self.format, file)?))
    }
}

/// What a template shows.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Template {
    Csv,
    #[value(alias = "jsonl")]
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed_and_documents_its_exit_codes() {
        let mut command = Arguments::command();
        command.clone().debug_assert();
        assert!(command.render_long_help().to_string().contains("Exit codes:"));
    }

    #[test]
    fn a_meter_is_not_named_twice_or_not_at_all() {
        for line in ["ami-tool meter get", "ami-tool meter get m --system-title 4D4D4D0000BC614E"] {
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert!(arguments.errand().is_err());
        }
    }

    #[test]
    fn a_file_without_a_known_extension_needs_a_format() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' ')).unwrap().errand();
        assert!(parse("ami-tool meter import meters.txt").is_err());
        assert!(parse("ami-tool meter import -").is_err());
        assert!(parse("ami-tool meter import - --format csv").is_ok());
        assert!(parse("ami-tool meter import meters.NDJSON").is_ok());
    }
}
