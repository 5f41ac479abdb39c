//! The arguments of `site status`, `site plan`, `site enrol`, and of the rotation of the service's own keys.

use std::path::PathBuf;

use clap::Args;

#[derive(Args)]
pub(crate) struct SiteStatusArgs {
    /// Show the signed reports of what the site that follows has proved, instead
    #[arg(long)]
    pub(crate) readiness: bool,
    /// Verify their signatures here; exit code 1 if one is not good
    #[arg(long, requires = "readiness")]
    pub(crate) verify: bool,
    /// With the key of this fingerprint, which `site enrol` showed, and no other; once for each token of the
    /// sites
    #[arg(long, value_name = "HEX", requires = "verify")]
    pub(crate) signing_key: Vec<String>,
}

#[derive(Args)]
pub(crate) struct Plan {
    /// The site, as the client's configuration calls it; needed where that names several
    #[arg(value_name = "SITE")]
    pub(crate) name: Option<String>,
    /// Have the site's token open every block for it
    #[arg(long)]
    pub(crate) open_blocks: bool,
}

/// The groups in which a fingerprint is printed: the command line may have it so, without quotes.
const GROUPS_MAX: usize = 16;

#[derive(Args)]
pub(crate) struct Enrol {
    /// The join request, as `kms-server init --join --request` wrote it
    #[arg(long, value_name = "FILE")]
    pub(crate) request: PathBuf,
    /// Its fingerprint, as somebody at the joining site read it out; with its blanks or without
    #[arg(long, value_name = "HEX", required = true, num_args = 1..=GROUPS_MAX)]
    pub(crate) fingerprint: Vec<String>,
    /// Write the bundle for the joining site to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// The site is known already, lost its token, and comes back with new keys
    #[arg(long)]
    pub(crate) replace: bool,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        enrol: Enrol,
    }

    #[test]
    fn a_fingerprint_may_stand_as_it_is_printed() {
        let groups = ["b9a4", "51d8", "71e2", "8a44", "0c20", "e42f", "4add", "0936"].repeat(2);
        let quoted = groups.join(" ");
        for said in [&groups[..], &[&*quoted], &[&*groups.concat()]] {
            let line = [&["x", "--request", "r", "--fingerprint"], said, &["--out", "b"]].concat();
            let only = Only::try_parse_from(line).unwrap_or_else(|error| panic!("{error}"));
            let read: kms_core::enrolment::Fingerprint =
                only.enrol.fingerprint.concat().parse().unwrap();
            assert_eq!(read.to_string(), quoted);
            assert_eq!(only.enrol.out, PathBuf::from("b"));
        }
    }
}

#[derive(Args)]
pub(crate) struct RotateSecrets {
    /// The site that writes, as the client's configuration calls it; needed where that names several
    #[arg(value_name = "SITE")]
    pub(crate) name: Option<String>,
    /// Ask for nothing: say how far the last one is. The exit code says whether it is over
    #[arg(long)]
    pub(crate) status: bool,
}

#[derive(Args)]
pub(crate) struct RotateKek {
    /// The site, as the client's configuration calls it; needed where that names several
    #[arg(value_name = "SITE")]
    pub(crate) name: Option<String>,
    /// Ask for nothing: say how far the last one is. The exit code says whether it is over
    #[arg(long)]
    pub(crate) status: bool,
}

#[derive(Args)]
pub(crate) struct DestroyKek {
    /// The site, as the client's configuration calls it; needed where that names several
    #[arg(value_name = "SITE")]
    pub(crate) name: Option<String>,
    /// The id of the KEK that was in use last, as `site rotate-kek --status` shows it; those from before it go with it
    #[arg(long, value_name = "HEX", value_parser = kek_id)]
    pub(crate) id: KekName,
    /// Do not ask again
    #[arg(long)]
    pub(crate) yes: bool,
}

/// 16 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KekName(pub(crate) [u8; 16]);

fn kek_id(text: &str) -> Result<KekName, String> {
    let read = hex::decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
    read.map(KekName).ok_or_else(|| "an id of a site KEK has 32 hexadecimal digits".to_owned())
}
