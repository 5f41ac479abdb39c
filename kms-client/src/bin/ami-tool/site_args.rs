//! The arguments of `site status` and `site plan`.

use clap::Args;

#[derive(Args)]
pub(crate) struct SiteStatusArgs {
    /// Show the signed reports of what the site that follows has proved, instead
    #[arg(long)]
    pub(crate) readiness: bool,
    /// Verify their signatures here; exit code 1 if one is not good
    #[arg(long, requires = "readiness")]
    pub(crate) verify: bool,
    /// With the key of this fingerprint, which `site enrol` showed, and no other
    #[arg(long, value_name = "HEX", requires = "verify")]
    pub(crate) signing_key: Option<String>,
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
