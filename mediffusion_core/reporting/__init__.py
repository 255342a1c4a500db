"""What people look at: charts, pictures, reports and cards."""
