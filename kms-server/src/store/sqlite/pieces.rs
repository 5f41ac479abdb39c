//! Rows in pieces: as many a statement as are worth it.

/// Rows a statement. More gain nothing; 7 columns of 64 rows are far below SQLite's 32,766 parameters.
const ROWS_A_STATEMENT: usize = 64;

/// Cuts `rows` into pieces of 64, 32, … 1 rows: only seven texts of each statement, so that they are
/// found again among the prepared ones.
pub(super) fn pieces<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let power = rows.len().checked_ilog2()?;
        let (piece, rest) = rows.split_at(ROWS_A_STATEMENT.min(1 << power));
        rows = rest;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_all_of_the_rows_in_few_sizes() {
        for len in 0..300 {
            let rows: Vec<usize> = (0..len).collect();
            assert_eq!(pieces(&rows).flatten().copied().collect::<Vec<_>>(), rows);
            assert!(pieces(&rows).all(|piece| piece.len().is_power_of_two()));
        }
    }
}
