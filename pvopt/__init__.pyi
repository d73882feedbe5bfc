from .engine.column_descent import RowMetric as RowMetric, row_metric_search as row_metric_search
