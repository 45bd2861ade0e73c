//! Plots as text: lines of Braille dots, bars of eighths, cells of half blocks, with axes and a key.

use super::Screen;
use super::blocks::SHADES;
use super::drawing::shade;
use super::pen::{Colours, Pen, Rgb};
use super::plot::{Cells, Figure, Labels, Plot, Series, Style, finite};
use super::scale::Scale;
use plotters::coord::ranged1d::Ranged;
use std::ops::Range;

/// Colours of series that can be read on dark and on light.
const INKS: [Rgb; 12] = [
    [70, 140, 245],
    [235, 120, 40],
    [65, 175, 100],
    [225, 75, 95],
    [165, 115, 220],
    [165, 130, 90],
    [225, 115, 180],
    [140, 140, 140],
    [35, 170, 180],
    [205, 160, 30],
    [110, 170, 60],
    [130, 170, 230],
];

/// Marks of series where colour does not tell them apart: Unicode and ASCII.
const MARKS: [[char; 8]; 2] = [['●', '▲', '■', '◆', '○', '△', '□', '◇'], ['*', 'o', 'x', '+', '#', '@', '%', '&']];

/// The largest drawing, in characters.
const LARGEST: (usize, usize) = (100, 24);

#[derive(Clone, Copy, Default)]
struct Cell {
    /// Braille dots, as bits of their character.
    dots: u8,
    glyph: Option<char>,
    ink: Option<Rgb>,
    paper: Option<Rgb>,
}

/// The characters between the axes, the first row at the top.
struct Sheet {
    cells: Vec<Cell>,
    width: usize,
    height: usize,
}

impl Sheet {
    fn new(width: usize, height: usize) -> Self {
        Self { cells: vec![Cell::default(); width * height], width, height }
    }

    fn at(&mut self, column: usize, row: usize) -> Option<&mut Cell> {
        let inside = column < self.width && row < self.height;
        inside.then(|| &mut self.cells[row * self.width + column])
    }

    fn glyph(&mut self, (column, row): (usize, usize), glyph: char, ink: Option<Rgb>) {
        if let Some(cell) = self.at(column, row) {
            *cell = Cell { glyph: Some(glyph), ink, ..*cell };
        }
    }

    /// One of 2 x 4 dots of a character.
    fn dot(&mut self, (x, y): (usize, usize), ink: Option<Rgb>) {
        const BITS: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
        if let Some(cell) = self.at(x / 2, y / 4) {
            cell.dots |= BITS[y % 4][x % 2];
            cell.ink = ink;
        }
    }

    fn row(&self, row: usize, pen: &mut Pen) {
        for cell in &self.cells[row * self.width..][..self.width] {
            let braille = char::from_u32(0x2800 + u32::from(cell.dots)).filter(|_| cell.dots > 0);
            pen.put(cell.glyph.or(braille).unwrap_or(' '), cell.ink, cell.paper);
        }
    }
}

/// What is drawn on, and with what.
struct Chart<'a> {
    screen: &'a Screen,
    plot: &'a Plot,
    axes: [Scale; 2],
    sheet: Sheet,
}

impl Screen {
    /// A plot in characters, at most the terminal's width and two thirds of its height.
    pub(super) fn chart(&self, plot: &Plot) -> String {
        let [x, y] = &plot.axes;
        let y = match (&plot.figure, plot.figure.corners().as_slice()) {
            (Figure::Lines(..), _) => y.clone(),
            (_, [low, high]) => Scale::new(low.1.min(high.1)..low.1.max(high.1), false, 0.0),
            _ => y.clone(),
        };
        let Labels { title, x: below, y: beside, .. } = &plot.labels;
        let key = !plot.names().is_empty() || matches!(plot.figure, Figure::Cells(_));
        let around = 2
            + [title, below, beside].map(|text| usize::from(!text.is_empty())).iter().sum::<usize>()
            + usize::from(key);
        let height = self.rows().saturating_sub(around).clamp(5, LARGEST.1);
        let widest = y.ticks(height / 3).iter().map(|v| y.text(*v).chars().count()).max().unwrap_or(1);
        let width = self.size.columns.saturating_sub(widest + 3).clamp(10, LARGEST.0);
        let (width, height) = plot.figure.even(width, height, self);
        let mut chart = Chart { screen: self, plot, axes: [x.clone(), y], sheet: Sheet::new(width, height) };
        match &plot.figure {
            Figure::Lines(series, style) => chart.lines(series, *style),
            Figure::Bars(_, counts) => chart.bars(counts),
            Figure::Cells(cells) => chart.cells(cells),
        }
        chart.text(widest)
    }
}

impl Figure {
    /// The size of a sheet on which all bars or cells are equally wide, at most this.
    fn even(&self, width: usize, height: usize, screen: &Screen) -> (usize, usize) {
        let whole = |room: usize, parts: usize| if parts <= room { room / parts * parts } else { room };
        match self {
            Self::Lines(..) => (width, height),
            Self::Bars(_, counts) => (whole(width, counts.len()), height),
            Self::Cells(cells) if screen.halves() => {
                (whole(width, cells.columns), whole(2 * height, cells.rows).div_ceil(2))
            }
            Self::Cells(cells) => (whole(width, cells.columns), whole(height, cells.rows)),
        }
    }
}

impl Screen {
    /// Whether half blocks in two colours can be shown.
    fn halves(&self) -> bool {
        self.unicode && self.colours != Colours::None
    }
}

impl Chart<'_> {
    fn coloured(&self) -> bool {
        self.screen.colours != Colours::None
    }

    fn mark(&self, series: usize) -> char {
        MARKS[usize::from(!self.screen.unicode)][series % 8]
    }

    /// Where a point is on a grid of so many places in each character; the first row is at the top.
    fn place(&self, point: (f64, f64), (across, down): (usize, usize)) -> (usize, usize) {
        let (right, bottom) = ((self.sheet.width * across - 1) as i32, (self.sheet.height * down - 1) as i32);
        let x = self.axes[0].map(&point.0, (0, right)).clamp(0, right);
        let y = bottom - self.axes[1].map(&point.1, (0, bottom)).clamp(0, bottom);
        (x as usize, y as usize)
    }

    fn lines(&mut self, series: &[Series], style: Style) {
        // single points are hard to see as dots
        let marked = style != Style::Lines && series.iter().all(|one| one.points.len() <= self.sheet.width);
        let apart = series.len() > 1 && !self.coloured();
        for (i, one) in series.iter().enumerate() {
            let ink = Some(INKS[i % INKS.len()]);
            let mark = if apart || !self.screen.unicode { self.mark(i) } else { '•' };
            for part in one.points.split(|p| !finite(p)) {
                if style != Style::Points {
                    self.curve(part, ink, self.mark(i));
                }
                for point in part.iter().filter(|_| style != Style::Lines) {
                    match marked || !self.screen.unicode {
                        true => self.sheet.glyph(self.place(*point, (1, 1)), mark, ink),
                        false => self.sheet.dot(self.place(*point, (2, 4)), ink),
                    }
                }
            }
        }
        if apart && style == Style::Lines && self.screen.unicode {
            series.iter().enumerate().for_each(|(i, one)| self.signs(i, series.len(), one));
        }
    }

    /// A line through the points: of dots, or of marks in ASCII.
    fn curve(&mut self, points: &[(f64, f64)], ink: Option<Rgb>, mark: char) {
        let fine = if self.screen.unicode { (2, 4) } else { (1, 1) };
        let places: Vec<(usize, usize)> = points.iter().map(|p| self.place(*p, fine)).collect();
        let ends = places.iter().zip(places.iter().skip(1).chain(places.last()));
        for (&(x0, y0), &(x1, y1)) in ends {
            let steps = x0.abs_diff(x1).max(y0.abs_diff(y1)).max(1);
            for step in 0..=steps {
                let share = step as f64 / steps as f64;
                let between = |a: usize, b: usize| (a as f64 + share * (b as f64 - a as f64)).round() as usize;
                let at = (between(x0, x1), between(y0, y1));
                if self.screen.unicode { self.sheet.dot(at, ink) } else { self.sheet.glyph(at, mark, ink) }
            }
        }
    }

    /// A mark of series `i` of `n` every dozen characters, where no other series has its own.
    fn signs(&mut self, i: usize, n: usize, series: &Series) {
        let mut next = 12 * i / n;
        for pair in series.points.windows(2).filter(|pair| pair.iter().all(finite)) {
            let [from, to] = [0, 1].map(|j| self.place(pair[j], (1, 1)));
            while (from.0.min(to.0)..=from.0.max(to.0)).contains(&next) && next < self.sheet.width {
                let share = (next as f64 - from.0 as f64) / (to.0 as f64 - from.0 as f64).max(1.0);
                let row = (from.1 as f64 + share * (to.1 as f64 - from.1 as f64)).round() as usize;
                self.sheet.glyph((next, row), self.mark(i), None);
                next += 12;
            }
        }
    }

    fn bars(&mut self, counts: &[usize]) {
        const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let (width, height) = (self.sheet.width, self.sheet.height);
        for column in 0..width {
            let count = counts[column * counts.len() / width];
            let full = (8 * height) as i32;
            let size = self.axes[1].map(&(count as f64), (0, full)).max(i32::from(count > 0)) as usize;
            for row in 0..height {
                let eighths = size.saturating_sub(8 * (height - 1 - row)).min(8);
                let glyph = match self.screen.unicode {
                    true => EIGHTHS[eighths],
                    false => [' ', '#'][usize::from(eighths >= 4 || (eighths > 0 && row == height - 1))],
                };
                self.sheet.glyph((column, row), glyph, Some(INKS[0]));
            }
        }
    }

    fn cells(&mut self, cells: &Cells) {
        let (width, range) = (self.sheet.width, cells.range());
        let halves = self.screen.halves();
        let rows = if halves { even_rows(2 * self.sheet.height, cells.rows) } else { self.sheet.height };
        let value = |column, row| {
            let mean = cells.mean(part(column, width, cells.columns), part(rows - 1 - row, rows, cells.rows));
            Some((mean - range.start) / (range.end - range.start)).filter(|share| share.is_finite())
        };
        let spare = if halves { 2 * self.sheet.height - rows } else { 0 }; // a half row stays free at the top
        for (column, row) in (0..rows).flat_map(|row| (0..width).map(move |column| (column, row))) {
            let share = value(column, row);
            let Some(cell) = self.sheet.at(column, if halves { (row + spare) / 2 } else { row }) else { continue };
            match (halves, self.screen.colours, share) {
                (true, _, share) => {
                    let colour = share.map(shade);
                    if (row + spare) % 2 == 0 {
                        (cell.glyph, cell.ink) = (colour.map(|_| '▀'), colour);
                    } else {
                        cell.paper = colour;
                        if cell.glyph.is_none() && colour.is_some() {
                            (cell.glyph, cell.ink, cell.paper) = (Some('▄'), colour, None);
                        }
                    }
                }
                (_, Colours::None, share) => cell.glyph = share.map(ascii),
                (_, _, share) => cell.paper = share.map(shade),
            }
        }
    }
}

/// The half rows that all cells fill equally, of as many.
fn even_rows(room: usize, rows: usize) -> usize {
    if rows <= room { room / rows * rows } else { room }
}

/// Which of `n` parts place `i` of `places` shows.
fn part(i: usize, places: usize, n: usize) -> Range<usize> {
    let start = i * n / places;
    start..((i + 1) * n / places).max(start + 1)
}

fn ascii(share: f64) -> char {
    SHADES[((share * 10.0) as usize).min(9)]
}

impl Cells {
    /// Mean of the finite values in these columns and rows; NaN without any.
    fn mean(&self, columns: Range<usize>, rows: Range<usize>) -> f64 {
        let all = rows.flat_map(|row| columns.clone().map(move |column| row * self.columns + column));
        let finite = all.map(|i| self.values[i]).filter(|v| v.is_finite());
        let (sum, count) = finite.fold((0.0, 0.0), |(sum, count), v| (sum + v, count + 1.0));
        sum / count
    }
}

impl Chart<'_> {
    /// The sheet with its axes, which take `widest` characters for their numbers.
    fn text(&self, widest: usize) -> String {
        let mut pen = Pen::new(self.screen.colours);
        let (width, height, labels) = (self.sheet.width, self.sheet.height, &self.plot.labels);
        let [bar, tick, corner, line, below] =
            if self.screen.unicode { ['│', '┤', '└', '─', '┬'] } else { ['|', '+', '+', '-', '+'] };
        let centred = |text: &str| {
            let room = width.saturating_sub(text.chars().count()) / 2;
            format!("{}{text}", " ".repeat(widest + 2 + room))
        };
        let write = |pen: &mut Pen, text: String| {
            pen.write(&text.chars().take(self.screen.size.columns).collect::<String>(), None);
            pen.line();
        };
        if !labels.title.is_empty() {
            write(&mut pen, centred(&labels.title));
        }
        if !labels.y.is_empty() {
            write(&mut pen, format!(" {}", labels.y));
        }
        let y = &self.axes[1];
        let ticks: Vec<(usize, String)> =
            y.ticks((height / 3).max(2)).iter().map(|v| (self.place((0.0, *v), (1, 1)).1, y.text(*v))).collect();
        for row in 0..height {
            let text = ticks.iter().find(|(at, _)| *at == row).map(|(_, text)| text.as_str());
            let edge = if text.is_some() { tick } else { bar };
            pen.write(&format!("{:>widest$} {edge}", text.unwrap_or_default()), None);
            self.sheet.row(row, &mut pen);
            pen.line();
        }
        let (axis, numbers) = self.below(line, below);
        write(&mut pen, format!("{} {corner}{axis}", " ".repeat(widest)));
        write(&mut pen, format!("{}{numbers}", " ".repeat(widest + 2)));
        if !labels.x.is_empty() {
            write(&mut pen, centred(&labels.x));
        }
        self.key(&mut pen, widest + 2);
        pen.finish()
    }

    /// The horizontal axis with its ticks, and the numbers under them, as far apart as they need.
    fn below(&self, line: char, tick: char) -> (String, String) {
        let (x, width) = (&self.axes[0], self.sheet.width);
        let mut axis = vec![line; width];
        let mut numbers = String::new();
        let most = (width / 10).max(2);
        for value in x.ticks(most) {
            let (column, text) = (self.place((value, 0.0), (1, 1)).0, x.text(value));
            let start = column.saturating_sub(text.chars().count() / 2);
            let used = numbers.chars().count();
            if numbers.is_empty() || start > used {
                axis[column] = tick;
                numbers += &format!("{}{text}", " ".repeat(start - used));
            }
        }
        (axis.into_iter().collect(), numbers)
    }

    /// The names of the series, or what the shades of cells mean.
    fn key(&self, pen: &mut Pen, left: usize) {
        if let Figure::Cells(cells) = &self.plot.figure {
            let scale = Scale::new(cells.range(), false, 0.0);
            pen.write(&format!("{}{} ", " ".repeat(left), scale.text(cells.range().start)), None);
            for i in 0..20 {
                let share = f64::from(i) / 19.0;
                match self.coloured() {
                    true => pen.put(' ', None, Some(shade(share))),
                    false => pen.put(ascii(share), None, None),
                }
            }
            pen.write(&format!(" {}", scale.text(cells.range().end)), None);
            return pen.line();
        }
        let mut used = 0;
        for (i, name) in self.plot.names().iter().enumerate() {
            let sign = match (self.coloured(), self.screen.unicode) {
                (true, true) => "━━".into(),
                _ => self.mark(i).to_string(),
            };
            let length = name.chars().count() + sign.chars().count() + 3;
            if used > 0 && left + used + length > self.screen.size.columns {
                pen.line();
                used = 0;
            }
            pen.write(&" ".repeat(if used == 0 { left } else { 2 }), None);
            pen.write(&sign, Some(INKS[i % INKS.len()]));
            pen.write(&format!(" {name}"), None);
            used += length;
        }
        if used > 0 {
            pen.line();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Images;
    use super::*;

    fn screen(colours: Colours, unicode: bool) -> Screen {
        Screen { images: Images::Blocks, colours, unicode, ..Screen::default() }
    }

    fn line(name: &str, from: f64, to: f64) -> Series {
        Series { name: name.into(), points: vec![(0.0, from), (1.0, to)], ..Series::default() }
    }

    fn lines(series: Vec<Series>, labels: Labels) -> Plot {
        Plot::lines(series, Style::Lines, labels).unwrap()
    }

    #[test]
    fn a_line_climbs_between_its_axes() {
        let labels = Labels { title: "climb".into(), x: "x".into(), y: "y".into(), ..Labels::default() };
        let text = screen(Colours::None, true).chart(&lines(vec![line("", 0.0, 1.0)], labels));
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows.len(), 16);
        assert!(rows[0].trim() == "climb" && rows[1].trim() == "y" && rows[15].trim() == "x", "{text}");
        assert!(rows.iter().all(|row| row.chars().count() <= 80), "{text}");
        let dots = |row: &str| -> Vec<usize> {
            row.chars().enumerate().filter(|(_, c)| ('\u{2801}'..='\u{28ff}').contains(c)).map(|(i, _)| i).collect()
        };
        let starts: Vec<usize> = rows[2..13].iter().filter_map(|row| dots(row).first().copied()).collect();
        assert!(starts.len() >= 10 && starts.is_sorted_by(|a, b| a > b), "{text}");
        assert!(!text.contains('\x1b') && rows[13].contains("┬"), "{text}");
    }

    #[test]
    fn series_differ_by_colour_or_by_mark() {
        let two = || lines(vec![line("base", 0.0, 1.0), line("tuned", 1.0, 0.0)], Labels::default());
        let coloured = screen(Colours::True, true).chart(&two());
        assert!(coloured.contains("\x1b[38;2;70;140;245m") && coloured.contains("\x1b[38;2;235;120;40m"));
        assert!(coloured.contains("━━") && coloured.contains(" base") && coloured.contains(" tuned"));
        let plain = screen(Colours::None, true).chart(&two());
        assert!(plain.lines().last().unwrap().trim() == "● base  ▲ tuned", "{plain}");
        assert!(plain.matches('●').count() > 4 && plain.matches('▲').count() > 4 && !plain.contains('\x1b'), "{plain}");
        let ascii = screen(Colours::None, false).chart(&two());
        assert!(ascii.is_ascii() && ascii.matches('*').count() > 20 && ascii.matches('o').count() > 20, "{ascii}");
    }

    #[test]
    fn bars_are_as_high_as_their_counts() {
        let values = [0.0, 0.1, 0.1, 0.1, 1.0, 1.0];
        let text = screen(Colours::None, true).chart(&Plot::histogram(&values, 2, Labels::default()).unwrap());
        let full = |side: fn(&str) -> char| text.lines().filter(|row| side(row) == '█').count();
        let bars: Vec<String> =
            text.lines().filter_map(|row| row.split_once(['│', '┤'])).map(|(_, bars)| bars.to_string()).collect();
        let width = bars.last().unwrap().chars().count();
        let left = bars.iter().filter(|row| row.starts_with('█')).count();
        let right = bars.iter().filter(|row| row.chars().nth(width - 1) == Some('█')).count();
        assert_eq!((left, right), (14, 7), "{text}");
        assert_eq!(full(|row| row.chars().next().unwrap_or(' ')), 0);
    }

    #[test]
    fn cells_are_shades_without_colour_and_half_blocks_with_it() {
        let map = Plot::heatmap((0..12).map(f64::from).collect(), 4, [None, None], Labels::default()).unwrap();
        let plain = screen(Colours::None, true).chart(&map);
        let rows: Vec<&str> = plain.lines().filter_map(|row| row.split_once(['│', '┤'])).map(|(_, row)| row).collect();
        assert!(rows[0].starts_with('#') && rows[0].ends_with('@'), "{plain}");
        assert!(rows[11].starts_with(' ') && rows[11].ends_with(':'), "{plain}");
        assert!(plain.lines().last().unwrap().contains("0.0   ..::--==++**##%%@@ 11.0"), "{plain}");
        let coloured = screen(Colours::True, true).chart(&map);
        assert!(coloured.contains("38;2;250;230;50") && coloured.contains('▀'), "{coloured}");
        let hole = Plot::heatmap(vec![0.0, f64::NAN, 1.0, 2.0], 2, [None, None], Labels::default()).unwrap();
        assert!(screen(Colours::None, true).chart(&hole).lines().count() > 6);
    }

    #[test]
    fn small_terminals_and_long_names_fit() {
        let size = amscript_base::terminal::Size { columns: 30, rows: 10, cell: None };
        let many = (0..6).map(|i| line(&format!("a rather long name {i}"), f64::from(i), 0.0)).collect();
        let text = Screen { size, ..screen(Colours::None, true) }.chart(&lines(many, Labels::default()));
        assert!(text.lines().all(|row| row.chars().count() <= 30), "{text}");
    }
}
