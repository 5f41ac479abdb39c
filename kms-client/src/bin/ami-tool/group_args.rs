//! The arguments of `group`.

use clap::{Args, Subcommand};
use kms_client::{KeyCarrier, KeyKind, MeterId, NewGroup, SystemTitle, parse_system_title};

use crate::key_args::Form;

#[derive(Subcommand)]
pub(crate) enum GroupCommand {
    /// Make a group, without members and without a key
    Create(Create),
    /// Show a group with its members, and how far each is with the group's keys
    Show(Named),
    /// Show all groups
    List,
    /// Take meters in. Who does not have the group's GBEK has it staged
    Add(Add),
    /// Take meters out. They know the GBEK: rotate it then
    Remove(Remove),
    /// Give up a group that has no members
    Delete(Named),
    /// Have one value made, and staged at all members. Asked again, it goes on with the same value
    Rotate(Rotate),
    /// End a rotation: nothing is sent under the former value any more
    Finish(Finish),
    /// Protect a broadcast: one message for each value that members may use. Send all of them
    Encrypt(Broadcast),
}

#[derive(Args)]
pub(crate) struct Named {
    /// The group
    #[arg(value_name = "GROUP")]
    pub(crate) name: String,
}

#[derive(Args)]
pub(crate) struct Create {
    #[command(flatten)]
    named: Named,
    /// The title of the client that broadcasts, 16 hex digits: the one that each member's policy has for it
    #[arg(long, value_name = "HEX", value_parser = title)]
    client_title: SystemTitle,
    /// The address of that client; the meters' default client otherwise
    #[arg(long, value_name = "N", default_value_t = 0)]
    client: u16,
    /// e in 0.0.43.0.e.255 of its members
    #[arg(long, value_name = "N", default_value_t = 0)]
    security_setup: u8,
    /// Broadcasts get no tag: members' policies must allow encryption alone
    #[arg(long)]
    encryption_only: bool,
    /// Of COSEM class 64 in its members, 0 or 1
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=1))]
    class_version: u8,
    /// The security setup of the association that brings members their keys; the group's own otherwise
    #[arg(long, value_name = "N")]
    carrier_setup: Option<u8>,
    /// The client (its address) of that association; the meters' default otherwise
    #[arg(long, value_name = "N")]
    carrier_client: Option<u16>,
    /// The form of that association's messages; general-glo otherwise
    #[arg(long, value_enum, value_name = "FORM")]
    carrier_form: Option<Form>,
}

impl Create {
    pub(crate) fn wanted(self) -> NewGroup {
        let Self { named, client_title, client, security_setup, encryption_only, .. } = self;
        let Self { class_version, carrier_setup, carrier_client, carrier_form, .. } = self;
        let said = carrier_setup.is_some() || carrier_client.is_some() || carrier_form.is_some();
        let carrier = said.then(|| KeyCarrier {
            security_setup: carrier_setup.unwrap_or(security_setup),
            client: carrier_client.unwrap_or_default(),
            form: carrier_form.map(Form::wanted).unwrap_or_default(),
        });
        let (name, authenticated) = (named.name, !encryption_only);
        NewGroup {
            name,
            security_setup,
            client,
            client_title,
            authenticated,
            class_version,
            carrier,
        }
    }
}

fn title(text: &str) -> Result<SystemTitle, String> {
    parse_system_title(text).map_err(|error| error.to_string())
}

#[derive(Args)]
pub(crate) struct Add {
    #[command(flatten)]
    pub(crate) named: Named,
    /// The operator's names of the meters
    #[arg(value_name = "ID", required = true)]
    pub(crate) meters: Vec<MeterId>,
    /// The key may be sent although the other site has not proved that it has it
    #[arg(long)]
    pub(crate) allow_unreplicated: bool,
}

#[derive(Args)]
pub(crate) struct Remove {
    #[command(flatten)]
    pub(crate) named: Named,
    /// The operator's names of the meters
    #[arg(value_name = "ID", required_unless_present = "system_title")]
    pub(crate) meters: Vec<MeterId>,
    /// A member whose record is gone or can't be read, 16 hex digits
    #[arg(long, value_name = "HEX", value_parser = title)]
    pub(crate) system_title: Vec<SystemTitle>,
}

/// A key of a group.
#[derive(Args)]
pub(crate) struct Key {
    #[command(flatten)]
    pub(crate) named: Named,
    /// GBEK or GAK
    #[arg(value_name = "KIND", value_parser = kind, default_value = "GBEK")]
    pub(crate) kind: KeyKind,
}

fn kind(text: &str) -> Result<KeyKind, String> {
    let kinds = [KeyKind::Gbek, KeyKind::Gak];
    let found = kinds.into_iter().find(|kind| kind.word().eq_ignore_ascii_case(text));
    found.ok_or_else(|| "keys of a group are GBEK and GAK".to_owned())
}

#[derive(Args)]
pub(crate) struct Rotate {
    #[command(flatten)]
    pub(crate) key: Key,
    /// It may be sent although the other site has not proved that it has it: if this site is lost then, so are members
    #[arg(long)]
    pub(crate) allow_unreplicated: bool,
}

#[derive(Args)]
pub(crate) struct Finish {
    #[command(flatten)]
    pub(crate) key: Key,
    /// A member that has not confirmed, and hears no broadcast until it does: name all of them
    #[arg(long, value_name = "ID")]
    pub(crate) left_out: Vec<MeterId>,
}

#[derive(Args)]
pub(crate) struct Broadcast {
    #[command(flatten)]
    pub(crate) named: Named,
    /// The plain APDU in hex. It is seen by whoever sees this machine's processes
    #[arg(long, value_name = "HEX")]
    pub(crate) apdu: String,
    /// In the service's own glo- form, and not in general-glo
    #[arg(long)]
    pub(crate) glo: bool,
}
