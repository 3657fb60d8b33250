"""Results published in the paper (Abotaleb, Fakhr & Zaki 2024), for comparison with ours."""

from __future__ import annotations

PEOPLE = 118  # speakers of the SLF Evaluation Dataset
RANDOM = {1: 0.85, 3: 2.5, 5: 4.2, 10: 8.5}  # R@k of random selection, percent

# Tables 5-7: guidance scale; R@1, R@3, R@5, R@10, recall of gender, ethnicity and age group in percent; RMSE of age in
# years; PSNR in dB; SSIM.
COLUMNS = ("scale", "r@1", "r@3", "r@5", "r@10", "gender", "ethnicity", "age_group", "age_rmse", "psnr", "ssim")
SYSTEMS: dict[str, tuple] = {
    "thumbnail only": (None, 6.8, 11.1, 16.9, 22.9, 78.8, 37.3, 44.1, 7.54, 16.74, 0.40),
    "full input": (8, 16.9, 30.5, 33.9, 45.8, 90.7, 65.3, 57.6, 5.62, 14.37, 0.27),
    "no thumbnail": (2, 9.3, 16.1, 23.7, 34.7, 88.1, 58.5, 72.9, 5.11, 10.46, 0.22),
    "no speaker embedding": (8, 9.3, 13.6, 16.1, 24.6, 74.6, 77.1, 51.7, 5.80, 16.29, 0.37),
    "no audio": (4, 9.3, 15.25, 25.4, 31.4, 73.7, 78.8, 55.1, 5.21, 16.50, 0.39),
    "only audio": (2, 7.6, 14.4, 17.8, 28.0, 87.3, 51.7, 49.2, 6.99, 10.57, 0.22),
    "speaker embedding only": (4, 8.5, 13.6, 17.8, 29.6, 89.0, 47.5, 41.5, 7.54, 10.52, 0.20),
    "no additional attributes": (4, 13.6, 20.3, 27.1, 35.6, 85.6, 53.4, 52.5, 5.77, 15.71, 0.34),
}
# Table 8: the columns of `SYSTEMS` after the scale, by guidance scale.
SCALES = {
    "full input": {
        0: (5.1, 7.6, 14.4, 20.3, 71.2, 46.6, 42.4, 7.55, 16.72, 0.40),
        2: (9.3, 18.6, 28.8, 42.4, 89.0, 62.7, 55.1, 5.87, 16.52, 0.38),
        4: (7.6, 22.0, 28.0, 39.0, 91.5, 64.4, 58.5, 5.05, 15.57, 0.34),
        6: (16.9, 24.6, 31.4, 46.6, 87.3, 64.4, 58.5, 5.59, 14.96, 0.30),
        8: (16.9, 30.5, 33.9, 45.8, 90.7, 65.3, 57.6, 5.62, 14.37, 0.27),
    },
    "speaker embedding only": {
        0: (1.7, 3.4, 4.2, 10.2, 60.2, 45.8, 47.5, 8.52, 10.95, 0.24),
        2: (8.5, 12.7, 17.8, 29.7, 89.0, 46.6, 43.2, 6.93, 11.11, 0.23),
        4: (8.5, 13.6, 17.8, 29.6, 89.0, 47.5, 41.5, 7.54, 10.52, 0.20),
        6: (6.8, 15.3, 21.2, 31.4, 85.6, 54.2, 48.3, 8.31, 10.38, 0.18),
        8: (4.3, 8.5, 14.5, 32.5, 88.0, 47.9, 43.6, 7.96, 10.26, 0.16),
    },
}
# By input: the system without it, with which the full input is compared, and the published significance S.
SIGNIFICANCE = {
    "thumbnail": ("no thumbnail", 75),
    "audio": ("no audio", 77),
    "speaker embeddings": ("no speaker embedding", 98),
    "attributes": ("no additional attributes", 31),
}


def recalls(system: str) -> dict[int, float]:
    """R@k of a system in percent, by k (Table 5)."""
    row = dict(zip(COLUMNS, SYSTEMS[system], strict=True))
    return {k: row[f"r@{k}"] for k in RANDOM}
